"""Backends, seeds and memory that shows what was never written."""

import pytest
import torch
from hypothesis import settings

from cl_kernels._dispatch import reason_against

# Small cases gain nothing from threads, and on a busy machine waiting for them costs a lot.
# test_determinism.py holds what more threads compute against this.
torch.set_num_threads(1)

# The same examples at every run; `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("default", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("default")


def skip_unless_usable(backend):
    reason = reason_against(backend, "cpu", torch.float32)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


@pytest.fixture(params=["reference", "chunked", "native"], scope="session")
def backend(request):
    """Every backend that serves CPU tensors; Triton's tests are in ``triton/``."""
    skip_unless_usable(request.param)
    return request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def nan_filled_memory(monkeypatch):
    """``torch.empty`` comes filled with NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
