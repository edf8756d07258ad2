"""Programs that train real models with cl_kernels."""

import os

# OpenMP reads it once, when torch is loaded. Threads that spin while they wait take the cores from
# those they wait for as soon as anything else runs on the machine: steps were 10 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
