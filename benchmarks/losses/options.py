"""What options cost: each beside the same call without it, and losses with them beside eager."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cl_kernels
from benchmarks.losses.cases import NAMES, Case
from benchmarks.losses.contestants import LOGIT_SCALE, backward, floating, make_inputs
from catalogue.losses import LOSSES, LossCase, other_class

STATISTIC_LIMIT = 1.10  # over the plain statistic
LOSS_SIZES = tuple((batch, width) for width in (128, 384) for batch in (16, 64, 256))
STATISTIC_SIZES = (64, 128), (256, 128), (1024, 128), (4096, 128), (1024, 768)

Step = Callable[[], Any]


class OptionCase(NamedTuple):
    """An option of a loss on so many pairs of embeddings, or of a primitive on as many rows."""

    name: str
    option: str
    rows: int
    width: int

    def __str__(self) -> str:
        return f"{self.name}-{self.option}-{self.rows}x{self.width}"

    @property
    def rival(self) -> str:
        return "eager" if self.name in LOSSES else "plain"

    @property
    def plain(self) -> Case:
        """The same without the option."""
        views = self.name in LOSSES and LOSSES[self.name].views
        return Case(self.name, 2 * self.rows if views else self.rows, self.width)


def _vector(rows: int) -> Tensor:
    return 0.1 * torch.randn(rows, generator=torch.Generator().manual_seed(1))


def _guide(rows: int, width: int) -> tuple[Tensor, Tensor, float]:
    x = F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(2)))
    return x, x, 0.5


# Of every statistic: arguments for so many rows and columns.
STATISTIC_OPTIONS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "where": lambda M, D: {"where": other_class(M)},
    "two filters": lambda M, D: {"where": (other_class(M), other_class(M))},
    "below": lambda M, D: {"below": 0.1},
    "below, above": lambda M, D: {"below": 0.1, "above": _vector(M) - 1},
    "query_bias": lambda M, D: {"query_bias": -1.0},
    "key_bias": lambda M, D: {"key_bias": _vector(M)},
    "query_bias, trained": lambda M, D: {"query_bias": _vector(M).requires_grad_()},
    "key_bias, trained": lambda M, D: {"key_bias": _vector(M).requires_grad_()},
    "guide": lambda M, D: {"guide": _guide(M, D)},
    "normalize": lambda M, D: {"normalize": True},
}


def loss_options(loss: LossCase) -> dict[str, Callable[[int, int], dict[str, Any]]]:
    """Those of the catalogue, whose floating tensors are trained here too, and what every loss
    has."""
    every = {name: make for name, make in loss.options.items() if name != "plain"}
    every["none"] = lambda B, D: {"reduction": "none"}
    if not loss.trains_scale:
        every["learned scale"] = lambda B, D: {loss.scale: torch.tensor(loss.typical)}
    return every


def option_cases(names: Iterable[str] = NAMES, quick: bool = False) -> list[OptionCase]:
    cases = []
    for name in names:
        if name in LOSSES:
            sizes, options = LOSS_SIZES[1:2] if quick else LOSS_SIZES, loss_options(LOSSES[name])
        elif quick and not name.endswith("logsumexp"):
            continue
        else:
            sizes = STATISTIC_SIZES[:3:2] if quick else STATISTIC_SIZES
            options = STATISTIC_OPTIONS
        cases += [OptionCase(name, option, *size) for option in options for size in sizes]
    return cases


def contestants(case: OptionCase) -> tuple[Step, Step]:
    """Ours with the option and its rival: forward and backward of each."""
    return _of_loss(case) if case.name in LOSSES else _of_statistic(case)


def _of_loss(case: OptionCase) -> tuple[Step, Step]:
    loss, inputs = LOSSES[case.name], make_inputs(case.plain)
    torch.manual_seed(0)
    options = loss_options(loss)[case.option](case.rows, case.width)
    trained = [x.requires_grad_() for x in options.values() if _is_floating(x)]
    embeddings, scales = inputs[:2], inputs[2:]
    arguments = {loss.scale: scales[0] if scales else loss.typical} | options

    def step(form: Callable[..., Tensor]) -> Step:
        leaves = inputs + trained
        return lambda: backward(floating(form(*embeddings, **arguments)), leaves)

    return step(loss.ours), step(loss.eager)


def _of_statistic(case: OptionCase) -> tuple[Step, Step]:
    function, inputs = getattr(cl_kernels, case.name), make_inputs(case.plain)
    options = STATISTIC_OPTIONS[case.option](case.rows, case.width)
    trained = [x for x in options.values() if _is_floating(x) and x.requires_grad]

    def ours():
        return backward(floating(function(*inputs, LOGIT_SCALE, **options)), inputs + trained)

    def plain():
        rows = [F.normalize(x) for x in inputs] if "normalize" in options else inputs
        return backward(floating(function(*rows, LOGIT_SCALE)), inputs)

    if "guide" not in options:
        return ours, plain
    query, key, _ = options["guide"]
    buffer = torch.ones(len(query), len(key))

    def plain_and_products():  # the guide's own, in the visit of each pass
        for _ in range(2):
            torch.mm(query, key.T, out=buffer)
        return plain()

    return ours, plain_and_products


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
