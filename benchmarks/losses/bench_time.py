"""Forward + backward: each loss and primitive against eager PyTorch and the bare product."""

import pytest

from benchmarks.losses.contestants import contestant
from benchmarks.machine import available_bytes
from benchmarks.timing import LEAST_PAIRS, measure_pairs

EAGER_MATRICES = 8  # logits, their softmax and the gradients of both, twice for clip
LEAST_EAGER_PAIRS = 3  # where eager takes seconds; the count is recorded beside the ratio


@pytest.mark.parametrize("rival", ["eager", "product"])
def test_time(benchmark, case, rival):
    needed = case.matrix_bytes * (EAGER_MATRICES if rival == "eager" else 1)
    if needed > available_bytes():
        pytest.skip(f"{rival} needs {needed / 1e9:.0f} GB")
    benchmark.group = case.name
    benchmark.extra_info.update(case=list(case), rival=rival)
    least = LEAST_EAGER_PAIRS if rival == "eager" else LEAST_PAIRS
    measure_pairs(benchmark, contestant(case, "ours"), contestant(case, rival), least)
