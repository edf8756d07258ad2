"""A query encoder, and the momentum encoder that makes its keys."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cl_kernels import PairFilter, info_nce
from cl_kernels.memory import MomentumEncoder, Queue
from examples.common.images.learner import Learner, Views
from examples.common.images.networks import Tower, mlp

Momentum = float | Callable[[int], float]  # or what gives it for a step


class MoCoV2(Learner):
    """A queue of keys; a query's negatives are those of other images.

    Chen et al., "Improved Baselines with Momentum Contrastive Learning" (2020), arXiv:2003.04297.

    Args:
        encoder, head: Of queries; the head has no norm.
        momentum: Of the momentum encoder.
        queue: The newest keys, with the ids of their images.
        temperature: Of the loss.
        key_parts: Keys are shuffled and encoded in so many parts, each of which batch norm
            normalises by itself.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        momentum: Momentum,
        queue: Queue,
        temperature: float,
        key_parts: int,
    ) -> None:
        super().__init__(encoder, head)
        self.key = MomentumEncoder(Tower(encoder, head), momentum)
        self.queue = queue
        self.temperature = temperature
        self.key_parts = key_parts
        self._fresh: tuple[Tensor, Tensor] | None = None  # keys that no optimizer step followed yet

    def loss(self, views: Views) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        query = self(views.first)
        key = shuffled(self.key, views.second, self.key_parts)
        self._fresh = key, views.ids
        loss = info_nce(
            query, key, self.queue.keys_like(query), temperature=self.temperature,
            where=PairFilter(views.ids, self.queue.labels, "different"), gather="all",
        )  # fmt: skip
        return loss, (query, key)

    def after_step(self) -> None:
        assert self._fresh is not None
        self.key.update()
        self.queue.push(*self._fresh, gather=True)


class MoCoV3(Learner):
    """No queue: keys of the batch, both ways, and a head that predicts keys from queries.

    Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (2021),
    arXiv:2104.02057, algorithm 1.

    Args:
        encoder, head: Of queries.
        predictor: From the head's outputs to keys.
        momentum: Of the momentum encoder.
        temperature: Of the loss, which is multiplied by twice that.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        predictor: nn.Module,
        momentum: Momentum,
        temperature: float,
    ) -> None:
        super().__init__(encoder, head)
        self.predictor = predictor
        self.key = MomentumEncoder(Tower(encoder, head), momentum)
        self.temperature = temperature

    def loss(self, views: Views) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        query_0, query_1 = (self.predictor(self(view)) for view in views[:2])
        key_0, key_1 = (self.key(view) for view in views[:2])
        others = PairFilter(views.ids, views.ids, "different")
        settings = {"temperature": self.temperature, "where": others, "gather": "all"}
        loss = info_nce(query_0, key_1, **settings) + info_nce(query_1, key_0, **settings)
        return 2 * self.temperature * loss, (query_0, key_1)

    def after_step(self) -> None:
        self.key.update()


def v2_head(features: int, projection: int) -> nn.Module:
    return mlp((features, features, projection), "none")


def v3_heads(features: int, projection: int, norm: str) -> tuple[nn.Module, nn.Module]:
    """Head and predictor as the authors' for ResNets: twice as wide as the encoder's features."""
    hidden = 2 * features
    return (
        mlp((features, hidden, projection), norm, last_norm=True),
        mlp((projection, hidden, projection), norm, last_norm=True),
    )


@torch.no_grad()
def shuffled(encode: nn.Module, images: Tensor, parts: int) -> Tensor:
    """Embeddings of ``images``, encoded in ``parts`` that are drawn anew at each call."""
    if parts == 1:
        return encode(images)
    order = torch.randperm(len(images)).to(images.device)
    keys = torch.cat([encode(part) for part in images[order].tensor_split(parts)])
    return keys[order.argsort()]
