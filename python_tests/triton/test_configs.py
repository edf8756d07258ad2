"""The table, what serves a device, and what is done where a configuration does not fit."""

import pytest
import torch
import triton

from cl_kernels.backends.triton import configs, ids, launch
from cl_kernels.backends.triton.slabs import Blocks
from cl_kernels.backends.triton.variants import KERNELS

from .cases import DEVICE

WIDTHS = (16, 32, 64, 128, 256, 320, 4096)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_call_has_a_configuration(arch):
    for family in KERNELS:
        for kind in ("half", "tf32", "ieee"):
            most = {"mean_key": configs.MEAN_KEY_KNEE[kind]}.get(family, configs.KNEE[kind])
            fused = "backward" in family or family == "mean_key"
            for width in WIDTHS:
                if fused and width > most:
                    continue
                for filtered in (False, True):
                    actual = configs.family_for(arch, family, kind, filtered)
                    config = configs.configured(arch, actual, kind, width)
                    assert configs.SLAB_UNIT % config.BLOCK_M == 0
                    assert fused == (config.BLOCK_D == 0) or width <= 256


def test_blocks_of_the_triangle_divide_one_another():
    for (_, family, _, _), config in configs.TABLE.items():
        if family.startswith(("self", "backward")):
            assert config.BLOCK_M % config.BLOCK_N == 0


def test_an_unknown_width_is_named():
    with pytest.raises(LookupError, match="sm_90: no backward configuration for half rows of wid"):
        configs.configured(90, "backward", "half", 512)


def refusals(limit):
    def run(config):
        needed = config.BLOCK_M * config.BLOCK_N * config.num_stages
        if needed > limit:
            raise triton.OutOfResources(needed, limit, "shared memory")
        return config

    return run


def test_the_first_that_fits(monkeypatch):
    monkeypatch.undo()
    first = configs.configured(90, "row_forward", "half", 128)
    case = 90, "row_forward", "half", 128
    assert launch.first_that_fits(*case, refusals(10**9)) == first
    smaller = launch.first_that_fits(*case, refusals(64 * 64))
    assert smaller.BLOCK_M * smaller.BLOCK_N <= 64 * 64
    assert launch.first_that_fits(*case, refusals(64 * 64)) == smaller
    with pytest.raises(RuntimeError, match=r"no row_forward configuration fits sm_90 .*of 10 shar"):
        launch.first_that_fits(*case, refusals(10))
    launch._fitting.clear()


@pytest.mark.parametrize("R", [1, 100, 500])
@pytest.mark.parametrize("sorted_from", [0, 10**9])
def test_compact_ids(monkeypatch, R, sorted_from):
    """Any int64 ids become int32 ones that are equal where they were."""
    monkeypatch.setattr(ids, "SORTED_FROM", sorted_from)
    few = torch.randint(-5, 5, (R,), device=DEVICE) * 2**40 + 7
    other = torch.cat([few, torch.randint(-(2**62), 2**62, (30,), device=DEVICE)])
    a, b = ids.compact_ids(few, other)
    assert a.dtype == b.dtype == torch.int32
    assert torch.equal(a[:, None] == b[None, :], few[:, None] == other[None, :])
    a, b = ids.compact_ids(few, few)
    assert a is b
    assert torch.equal(a[:, None] == a[None, :], few[:, None] == few[None, :])


@pytest.mark.parametrize(("rows", "cols"), [(65536, 65536), (100, 10**6), (10**6, 100), (1, 1)])
def test_slabs_cover_everything_and_fit(rows, cols):
    class Problem:
        compute_dtype = torch.bfloat16

    blocks = Blocks(Problem, rows, cols)
    covered = 0
    for r, c in blocks:
        size = (r.stop - r.start) * (c.stop - c.start)
        assert 0 < size * 2 <= configs.SLAB_BYTES
        covered += size
    assert covered == rows * cols
    if rows == cols:
        upper = list(blocks.upper())
        assert all(c.start >= r.start for r, c in upper)


def test_waves_cover_all_row_blocks(monkeypatch):
    monkeypatch.setattr(configs, "PARTIAL_BYTES", 4 * 1000 * 7)
    waves = list(launch.waves(30, 1000))
    assert waves == [(0, 7), (7, 7), (14, 7), (21, 7), (28, 2)]
