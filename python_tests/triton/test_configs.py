"""The table, what serves a device, and what is done where a configuration does not fit."""

import os
import subprocess
import sys

import pytest
import torch
import triton

from cl_kernels.backends.gpu import cuts
from cl_kernels.backends.triton import configs, ids, launch
from cl_kernels.backends.triton.variants import KERNELS
from cl_kernels.calls import WIDTH_CLASSES

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
                    assert cuts.SLAB_UNIT % config.BLOCK_M == 0
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
    monkeypatch.setattr(launch, "_fitting", {})
    case = 90, "row_forward", "half", 128
    first = configs.configured(*case)
    case = torch.device("cuda:0"), *case, False
    assert launch.first_that_fits(*case, refusals(10**9)) == first
    smaller = launch.first_that_fits(*case, refusals(64 * 64))
    assert smaller.BLOCK_M * smaller.BLOCK_N <= 64 * 64
    assert launch.first_that_fits(*case, refusals(10**9)) == smaller  # nothing is tried again
    other = torch.device("cuda:1"), *case[1:]
    assert launch.first_that_fits(*other, refusals(10**9)) == first
    narrow = launch.first_that_fits(*other[:-1], True, refusals(10**9))
    assert narrow.BLOCK_M * narrow.BLOCK_N == first.BLOCK_M * first.BLOCK_N / 2
    with pytest.raises(RuntimeError, match=r"no row_forward configuration fits sm_90 .*of 10 shar"):
        launch.first_that_fits(*case, refusals(10))


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


def test_compact_ids_of_memory_that_is_not_the_same(monkeypatch):
    """Empty tensors, tensors on no device, and every other element of a tensor."""
    monkeypatch.setattr(ids, "SORTED_FROM", 0)
    for device in (DEVICE, "meta"):
        size = 7 if device == "meta" else 0
        both = [torch.empty(size, dtype=torch.int64, device=device) for _ in range(2)]
        a, b = ids.compact_ids(*both)
        assert a is not b and len(a) == len(b) == size
    steps = torch.arange(20, device=DEVICE)
    a, b = ids.compact_ids(steps[:10], steps[::2])
    assert torch.equal(a[:, None] == b[None, :], steps[:10, None] == steps[None, ::2])
    monkeypatch.setattr(ids, "SORTED_FROM", 10**9)
    a, b = ids.compact_ids(steps[::2], steps[::2])
    assert a is b and len(a.unique()) == 10


PRECISIONS = """
import os, sys, torch
from cl_kernels.backends.triton import configs

for line in sys.stdin.read().splitlines():
    if not os.fork():  # settings are the process's
        exec(line)
        print(configs.kind(torch.float32), flush=True)
        os._exit(0)
    os.wait()
"""
SETTINGS = {
    "pass": "ieee",
    "torch.set_float32_matmul_precision('highest')": "ieee",
    "torch.set_float32_matmul_precision('high')": "tf32",
    "torch.set_float32_matmul_precision('medium')": "tf32",
    "torch.backends.cuda.matmul.allow_tf32 = True": "tf32",
    "torch.backends.cuda.matmul.allow_tf32 = False": "ieee",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "tf32",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'": "ieee",
    "torch.backends.fp32_precision = 'tf32'": "tf32",
    "torch.backends.fp32_precision = 'ieee'": "ieee",
    "torch.backends.fp32_precision = 'bf16'": "ieee",  # which CUDA's products do not have
    "torch.backends.fp32_precision = 'tf32'; "
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'": "ieee",
    "torch.backends.fp32_precision = 'tf32'; "
    "torch.backends.cuda.matmul.fp32_precision = 'none'": "tf32",
    "torch.backends.fp32_precision = 'ieee'; torch.set_float32_matmul_precision('high')": "tf32",
    "torch.set_float32_matmul_precision('high'); "
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'": "ieee",
}


def test_compiled_calls_are_asked_about_by_classes_of_widths():
    """Of a width that is a symbol the core knows only between which limits it is."""
    assert configs.WIDE in WIDTH_CLASSES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
def test_products_are_as_precise_as_torchs():
    """Whichever of its settings was made."""
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"}
    run = subprocess.run(
        [sys.executable, "-c", PRECISIONS], input="\n".join(SETTINGS), env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    found = dict(zip(SETTINGS, run.stdout.split(), strict=True))
    assert found == SETTINGS, run.stderr[-2000:]


@pytest.mark.parametrize(("rows", "cols"), [(65536, 65536), (100, 10**6), (10**6, 100), (1, 1)])
def test_slabs_cover_everything_and_fit(rows, cols):
    slabs = cuts.Slabs.of(rows, cols, itemsize=2)
    covered = 0
    for r, c in slabs:
        size = (r.stop - r.start) * (c.stop - c.start)
        assert 0 < size * 2 <= cuts.SLAB_BYTES
        covered += size
    assert covered == rows * cols
    if rows == cols:
        upper = list(slabs.upper())
        assert all(c.start >= r.start for r, c in upper)
        off = [(r.stop - r.start) * (c.stop - c.start) for r, c in upper if r != c]
        assert sum((r.stop - r.start) ** 2 for r, c in upper if r == c) + 2 * sum(off) == covered


def test_waves_cover_all_row_blocks(monkeypatch):
    monkeypatch.setattr(cuts, "PARTIAL_BYTES", 4 * 1000 * 7)
    waves = list(cuts.waves(30, 1000))
    assert waves == [(0, 7), (7, 7), (14, 7), (21, 7), (28, 2)]
