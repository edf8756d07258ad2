"""What the tests of the torch-free C++ share."""

import numpy as np
import pytest

try:
    import cl_testing
except ImportError:  # then every module that uses it skips itself
    KERNELS = []
else:
    KERNELS = [*cl_testing.TileKernels32.usable, *cl_testing.TileKernels64.usable]

LOWEST = -3e38  # where a maximum starts (csrc/statistics.h)
SHAPES = ((1, 1), (3, 63), (2, 64), (5, 65), (64, 7), (33, 200))  # of a tile


def dtype_of(kernels):
    return np.float32 if isinstance(kernels, cl_testing.TileKernels32) else np.float64


def name_of(kernels):
    return f"{kernels.instruction_set}-{dtype_of(kernels).__name__}"


@pytest.fixture(params=KERNELS, ids=name_of)
def kernels(request):
    """Every instruction set of this machine, in float and double."""
    return request.param


@pytest.fixture
def dtype(kernels):
    return dtype_of(kernels)


@pytest.fixture
def random():
    return np.random.default_rng(0)
