"""What outlives a batch: a queue of keys, a row for each instance, and an encoder that follows.

A loss reads keys before this step's are stored; docs/memory.md has the recipes.
"""

from cl_kernels.memory.bank import MemoryBank
from cl_kernels.memory.momentum import MomentumEncoder, cosine_momentum
from cl_kernels.memory.queue import Queue

__all__ = ["MemoryBank", "MomentumEncoder", "Queue", "cosine_momentum"]
