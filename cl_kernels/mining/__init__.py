"""Hard negatives: mined from a corpus or in the batch, filtered inside the scan."""

from cl_kernels.mining.in_batch import hardest_negative, hardest_positive, semi_hard_negative
from cl_kernels.mining.negatives import mine_hard_negatives
from cl_kernels.mining.result import MinedNegatives, Triplets
from cl_kernels.mining.schedule import MiningSchedule
from cl_kernels.mining.shortfall import Shortfall

__all__ = [
    "MinedNegatives",
    "MiningSchedule",
    "Shortfall",
    "Triplets",
    "hardest_negative",
    "hardest_positive",
    "mine_hard_negatives",
    "semi_hard_negative",
]
