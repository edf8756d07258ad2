"""Forward + backward with an option: a primitive against itself without it, a loss against eager.

What a shared machine does to one side it does to the other: both are timed in one run, in turn.
"""

from benchmarks.losses.options import contestants
from benchmarks.timing import measure_pairs


def test_option(benchmark, option_case):
    benchmark.group = option_case.name
    benchmark.extra_info.update(option=list(option_case), rival=option_case.rival)
    measure_pairs(benchmark, *contestants(option_case))
