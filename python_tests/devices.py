"""Where the kernels' tests run: on a GPU, or under Triton's interpreter on the CPU.

CL_KERNELS_TEST_DEVICE names another place, such as the CPU for what needs no GPU.
"""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NAMED = os.environ.get("CL_KERNELS_TEST_DEVICE")
# What needs a GPU is gone through on the CPU too, with nothing launched and nothing compared.
REHEARSED = os.environ.get("CL_KERNELS_TEST_REHEARSED") == "1"
DEVICE = NAMED or ("cpu" if INTERPRETED else "cuda")
