"""The Triton kernels on a CUDA GPU or, with TRITON_INTERPRET=1 and small tiles, on the CPU."""

import os

import pytest
import torch

from python_tests.devices import INTERPRETED, NAMED

pytest.importorskip("triton.language")


def pytest_collection_modifyitems(items):
    if INTERPRETED or NAMED or torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA GPU, and TRITON_INTERPRET=1 is not set")
    for item in items:
        if item.path.parent == os.path.dirname(__file__) or "triton" in item.path.parent.name:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Whether tiles are so small that small problems have several of them, and serve any width."""
    from cl_kernels.backends.triton import configs

    if not INTERPRETED:
        return False

    def candidates(arch, family, kind, width):
        return [configs.Config(32, 16, 64 if width > 256 else 0, 4, 1)]

    monkeypatch.setattr(configs, "candidates", candidates)
    return True


@pytest.fixture(autouse=True)
def nan_in_new_memory(monkeypatch):
    """NaN in what is not written."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.manual_seed(0)
