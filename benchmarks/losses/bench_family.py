"""Forward + backward of the losses whose inputs are their own, each beside its rivals."""

from benchmarks.losses.family import contestants
from benchmarks.timing import measure_pairs


def test_family(benchmark, family_size):
    benchmark.group = family_size.loss
    benchmark.extra_info.update(family=list(family_size), rival=family_size.rival)
    measure_pairs(benchmark, *contestants(family_size), least_when_long=3)
