"""torchvision, which is optional."""

import re
from types import ModuleType

import torch

_declared: list[torch.library.Library] = []  # a declaration lives as long as its Library


def import_torchvision() -> ModuleType:
    """torchvision with its models, data sets and transforms.

    Its wheels on PyPI are built for CUDA. Beside a CPU build of torch their compiled operators do
    not load, and the import stops at the first operator that is not declared. Nothing here calls
    them, so that declaring them is enough.

    Raises:
        ImportError: torchvision is missing, or does not fit this torch.
    """
    while True:
        try:
            import torchvision

            return torchvision
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise ImportError(f"torchvision does not fit this torch: {error}") from error
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            _declared.append(library)  # once per name: a second one raises
