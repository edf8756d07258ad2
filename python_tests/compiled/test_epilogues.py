"""The epilogues of ``csrc/epilogues.h`` against those of Python in float64."""

import numpy as np
import pytest
import torch

from cl_kernels.losses.epilogues import EPILOGUES

cl_testing = pytest.importorskip(
    "cl_testing",
    reason="cl_testing is not built (python setup.py build_ext --inplace, with pybind11)",
)

COMPILED = {torch.float32: cl_testing.EPILOGUES32, torch.float64: cl_testing.EPILOGUES64}
NUMBERS = (-1e4, -120.0, -20.0, -1.5, 0.0, 0.3, 5.0, 80.0, 1e4)


def test_every_compiled_epilogue_is_one_of_python():
    assert set(cl_testing.EPILOGUES32) == set(cl_testing.EPILOGUES64) == set(EPILOGUES)


@pytest.mark.parametrize("dtype", COMPILED, ids=str)
@pytest.mark.parametrize("name", cl_testing.EPILOGUES32)
def test_values_and_pulls(name, dtype):
    negatives = (*NUMBERS, -np.inf, np.nan)
    if name == "sigmoid":  # a sum of softplus is not negative
        negatives = [n for n in negatives if not n < 0]
    pairs = [(n, p) for n in negatives for p in NUMBERS]
    ours = torch.tensor([COMPILED[dtype][name](n, p) for n, p in pairs], dtype=dtype)
    negatives, positive = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    epilogue = EPILOGUES[name]
    expected = [epilogue.value(negatives, positive), *epilogue.pulls(negatives, positive)]
    rtol = 8 * torch.finfo(dtype).eps
    tiny = torch.finfo(dtype).tiny
    for a, b in zip(ours.unbind(1), expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=tiny, equal_nan=True)
