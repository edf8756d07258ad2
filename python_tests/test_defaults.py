"""torch's default device and dtype are for what users make: they change no result of ours."""

import pytest
import torch

from python_tests.helpers import unit_rows
from python_tests.test_public import DETACHED, TRAINED, run

CASES = TRAINED | DETACHED


@pytest.fixture(params=[torch.device("meta"), torch.float64, torch.bfloat16], ids=str)
def default(request):
    """Sets one of them, when it is called: the inputs are made before."""

    def set_default():
        if isinstance(request.param, torch.device):
            torch.set_default_device(request.param)
        else:
            torch.set_default_dtype(request.param)

    yield set_default
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_the_same_results(name, backend, default):
    x, y = unit_rows(24, 8), unit_rows(24, 8)
    expected = run(CASES[name], backend, x, y)
    default()
    results = run(CASES[name], backend, x, y)
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
