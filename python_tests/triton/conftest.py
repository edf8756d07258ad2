"""The Triton kernels on a CUDA GPU or, with TRITON_INTERPRET=1 and small tiles, on the CPU."""

import os

import pytest
import torch

pytest.importorskip("triton.language")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items):
    if INTERPRETED or torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA GPU, and TRITON_INTERPRET=1 is not set")
    for item in items:
        if item.path.parent == os.path.dirname(__file__) or "triton" in item.path.parent.name:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles that small problems have several of, and NaN in what is not written."""
    from cl_kernels.backends.triton import configs

    if INTERPRETED:

        def candidates(arch, family, kind, width):
            return [configs.Config(32, 16, 64 if width > 256 else 0, 4, 1)]

        monkeypatch.setattr(configs, "candidates", candidates)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.manual_seed(0)
