"""torch's default device and dtype are for what users make: they change no result of ours."""

import pytest
import torch

import cl_kernels
from python_tests.helpers import unit_rows
from python_tests.test_public import DETACHED, POSITIVES, TRAINED, run

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


def rescored(x, y, number):
    """With another model's scores as lists, as a cross-encoder returns them."""
    mined = cl_kernels.mine_hard_negatives(x, y, POSITIVES, candidates=3)
    again = mined.rescore([number] * 72, [number + 1e-4] * 24, absolute_margin=1e-5)
    return again.scores, again.positive_scores


def test_scores_of_other_models(default):
    x, y = unit_rows(24, 8), unit_rows(24, 8)
    expected = rescored(x, y, 0.7001)
    default()
    torch.testing.assert_close(rescored(x, y, 0.7001), expected, rtol=0, atol=0)
