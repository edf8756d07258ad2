"""Second views that are other images of the same thing."""

import torch
from torch import Tensor


class Partners:
    """Draws for each image another one of its group; one that is alone gets itself.

    Args:
        groups: Group of each image, shape [N] int64.
    """

    def __init__(self, groups: Tensor) -> None:
        self._order = groups.argsort(stable=True)  # [N]: images, group by group
        _, inverse, sizes = groups.unique(return_inverse=True, return_counts=True)
        self._size = sizes[inverse]  # [N]
        self._first = (sizes.cumsum(0) - sizes)[inverse]  # [N]: where the group begins in the order
        self._place = torch.empty_like(self._order)
        self._place[self._order] = torch.arange(len(groups)) - self._first[self._order]

    def draw(self, images: Tensor) -> Tensor:
        """Partners of ``images`` (indices, shape [B]) from torch's global generator."""
        size = self._size[images]
        steps = 1 + (torch.rand(len(images)) * (size - 1)).long()  # 1 to size - 1: never itself
        return self._order[self._first[images] + (self._place[images] + steps) % size]
