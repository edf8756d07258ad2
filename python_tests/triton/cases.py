"""Problems, and the float64 reference's answers to them."""

from dataclasses import dataclass, field

import torch

from cl_kernels.backends import reference
from python_tests.devices import DEVICE

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRADIENT_ERROR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@dataclass
class Case:
    """Queries, keys and options. ``exact`` gives the same in float64."""

    query: torch.Tensor
    key: torch.Tensor
    scale: float = 1.0
    filters: list = field(default_factory=list)  # (query_ids, key_ids, keep_same)
    bound: float | None = None

    def options(self, compute_dtype):
        query_ids, key_ids, keep_same = (
            zip(*self.filters, strict=True) if self.filters else [()] * 3
        )
        ids = [list(query_ids), list(key_ids), list(keep_same)]
        return *ids, None, None, None, None, compute_dtype, self.bound

    @property
    def args(self):
        scale = torch.tensor(self.scale, device=DEVICE)
        return self.query, self.key, scale, *self.options(self.query.dtype)

    @property
    def self_args(self):
        return self.args[0], *self.args[2:]

    @property
    def exact(self):
        case = Case(self.query.double(), self.key.double(), self.scale, self.filters)
        scale = torch.tensor(self.scale, device=DEVICE, dtype=torch.float64)
        return case.query, case.key, scale, *case.options(torch.float64)

    @property
    def exact_self(self):
        return self.exact[0], *self.exact[2:]


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
    }[name]


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


def row_col_exact(case):
    return reference.row_col_logsumexp(*case.exact)


def upstream(*lengths):
    return [torch.randn(n, device=DEVICE) / max(n, 1) for n in lengths]
