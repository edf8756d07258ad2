"""Problems, and the float64 reference's answers to them."""

from dataclasses import dataclass, field, replace

import torch

from cl_kernels.calls import Call
from cl_kernels.pairs import OPTIONS, Pairs
from cl_kernels.statistics.table import FOLDS, STATISTICS
from python_tests.devices import DEVICE
from python_tests.helpers import accumulator

SUMS = [fold.name for fold in FOLDS if fold.name.endswith("sum")]
OPTION_SETS = ("biases", "guide", "biases+bounds+guide")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRADIENT_ERROR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@dataclass
class Case:
    """Queries, keys and options. ``exact`` is the same in float64."""

    query: torch.Tensor
    key: torch.Tensor
    scale: float = 1.0
    filters: list = field(default_factory=list)  # (query_ids, key_ids, keep_same)
    below: torch.Tensor | None = None
    above: torch.Tensor | None = None
    query_bias: torch.Tensor | None = None
    key_bias: torch.Tensor | None = None
    query_guide: torch.Tensor | None = None
    key_guide: torch.Tensor | None = None
    ceiling: torch.Tensor | None = None
    bound: float | None = None

    @property
    def pairs(self):
        ids = zip(*self.filters, strict=True) if self.filters else [()] * 3
        return Pairs(*map(tuple, ids), **{name: getattr(self, name) for name in OPTIONS})

    @property
    def exact(self):
        tensors = {
            name: None if x is None else x.double()
            for name in ("query", "key", *OPTIONS)
            for x in [getattr(self, name)]
        }
        return replace(self, **tensors)

    def arguments(self, of_one=False):
        """What a backend's functions take of the case, from the query on."""
        scale = torch.tensor(self.scale, device=DEVICE, dtype=accumulator(self.query.dtype))
        call = Call(self.pairs, self.query.dtype, self.bound)
        return self.query, None if of_one else self.key, scale, call

    def forward(self, module, name):
        statistic = STATISTICS[name]
        return module.forward(statistic, *self.arguments(statistic.of_one))

    def weighted_key(self, module, name="row_logsumexp"):
        return module.weighted_key(STATISTICS[name], *self.arguments())

    def backward(self, module, name, grads, values, needs=(True, True)):
        """Gradients, those of biases that are there included."""
        needs_biases = self.query_bias is not None, self.key_bias is not None
        statistic = STATISTICS[name]
        arguments = self.arguments(statistic.of_one)
        return module.backward(statistic, grads, values, *arguments, (*needs, *needs_biases))


def unit_rows(*size, dtype=torch.float32):
    rows = torch.nn.functional.normalize(torch.randn(*size), dim=1)
    return rows.to(device=DEVICE, dtype=dtype)


def random_case(M=40, N=50, D=40, dtype=torch.float32, scale=10.0, peaked=True, **options):
    """Unit embeddings, with near-duplicates that make half of the softmaxes peaked."""
    query, key = unit_rows(M, D, dtype=dtype), unit_rows(N, D, dtype=dtype)
    if peaked:
        half = min(M, N) // 2
        key[:half] = query[:half]
    return Case(query, key, scale, **options)


def ids(length, groups=None):
    """``length`` int64 ids: of a few groups, or all different."""
    if groups is None:
        return torch.arange(length, device=DEVICE) + 2**40
    return torch.randint(groups, (length,), device=DEVICE) - 2**33


def filters_of(name, M, N):
    return {
        "none": [],
        "different": [(ids(M), ids(N), False)],
        "same": [(ids(M, 5), ids(N, 5), True)],
        "two": [(ids(M, 5), ids(N, 5), True), (ids(M), ids(N), False)],
        "three": [
            (ids(M), ids(N), False),
            (ids(M, 2), ids(N, 2), True),
            (ids(M, 3), ids(N, 3), False),
        ],
    }[name]


def bounds_of(M):
    """``below`` and ``above``: what keeps about half of the similarities of unit rows."""
    half = 0.1 * torch.randn(2, M, device=DEVICE)
    return {"below": half[0] + 0.3, "above": half[1] - 0.3}


def biases_of(M, N):
    return {"query_bias": torch.randn(M, device=DEVICE), "key_bias": torch.randn(N, device=DEVICE)}


def guides_of(M, N, G=40):
    """Guides whose similarities are exact, and ceilings that keep about half of the pairs."""
    query, key = (torch.randint(-3, 4, (n, G), device=DEVICE).float() for n in (M, N))
    return {"query_guide": query, "key_guide": key, "ceiling": torch.arange(M, device=DEVICE) % 3.0}


def options_of(name, M, N):
    parts = {"biases": biases_of(M, N), "bounds": bounds_of(M), "guide": guides_of(M, N)}
    chosen = [parts[part] for part in name.split("+")]
    return {option: value for options in chosen for option, value in options.items()}


def assert_value(actual, expected, scale):
    """Equal but for rounding; NaN and infinities in the same places."""
    expected = expected.double()
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    assert torch.equal(actual.isnan(), expected.isnan())
    error = (actual.double() - expected)[finite].abs()
    allowed = 3e-7 * max(1.0, abs(scale)) * expected[finite].abs().clamp_min(1.0)
    assert (error <= allowed).all(), f"off by {(error / allowed).max():.2f} of what is allowed"


def assert_gradient(actual, expected, dtype, scale=1.0):
    """Frobenius error within the dtype's; NaN in the same places."""
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan())
    finite = expected.isfinite()
    difference = (actual.double() - expected.double())[finite].norm()
    allowed = GRADIENT_ERROR[dtype] * max(1.0, abs(scale) / 100)
    norm = expected[finite].norm().clamp_min(1e-20)
    assert difference <= allowed * norm, f"relative error {difference / norm:.2e}"


def upstream(*lengths):
    return [torch.randn(n, device=DEVICE) / max(n, 1) for n in lengths]
