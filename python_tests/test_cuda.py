"""The package on a CUDA GPU: losses, compilation, graphs and repeatability with its own choice of
backend. CL_KERNELS_TEST_DEVICE=cpu runs what can be run without one."""

import os

import pytest
import torch
import torch.nn.functional as F

import cl_kernels
from cl_kernels import PairFilter

DEVICE = os.environ.get("CL_KERNELS_TEST_DEVICE", "cuda")
ERROR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}

needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA GPU"
)


def rows(count, width, dtype=torch.float32):
    x = F.normalize(torch.randn(count, width)).to(DEVICE, dtype)
    return x.requires_grad_()


LOSSES = {
    "nt_xent": lambda x, y, scale, **how: cl_kernels.nt_xent(x, y, 1 / scale, **how),
    "info_nce": lambda x, y, scale, **how: cl_kernels.info_nce(x, y, temperature=1 / scale, **how),
    "clip": lambda x, y, scale, **how: cl_kernels.clip(x, y, scale, **how),
}


def gradients(loss, inputs):
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("width", [48, 320])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients(name, width, dtype):
    x, y = rows(150, width, dtype), rows(150, width, dtype)
    with torch.no_grad():
        y[:60] = x[:60]
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)
    actual = gradients(LOSSES[name], (x, y, scale))
    exact = [t.detach().double().requires_grad_() for t in (x, y, scale)]
    expected = gradients(lambda *args: LOSSES[name](*args, backend="reference"), exact)
    # The loss itself is made from float32 statistics whatever the inputs' dtype.
    assert actual[0].item() == pytest.approx(expected[0].item(), rel=1e-2, abs=1e-4)
    for ours, theirs in zip(actual[1:], expected[1:], strict=True):
        assert (ours.double() - theirs).norm() <= 3 * ERROR[dtype] * theirs.norm() + 1e-7


@pytest.mark.parametrize("keep", ["same", "different"])
def test_filters(keep):
    query, key = rows(90, 64), rows(130, 64)
    where = PairFilter(
        torch.randint(5, (90,), device=DEVICE), torch.randint(5, (130,), device=DEVICE), keep
    )
    row, col = cl_kernels.row_col_logsumexp(query, key, 10.0, where=where)
    expected = cl_kernels.row_col_logsumexp(
        query.double(), key.double(), 10.0, where=where, backend="reference"
    )
    for ours, theirs in zip((row, col), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=3e-6, atol=3e-6)


@needs_cuda
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_without_a_graph_break(name):
    x, y = rows(100, 64), rows(100, 64)
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)
    compiled = torch.compile(LOSSES[name], fullgraph=True)
    for ours, theirs in zip(
        gradients(compiled, (x, y, scale)), gradients(LOSSES[name], (x, y, scale)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@needs_cuda
@pytest.mark.parametrize("name", LOSSES)
def test_deterministic_mode_repeats_bit_for_bit(name):
    x, y = rows(1000, 64, torch.bfloat16), rows(1000, 64, torch.bfloat16)
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        first = gradients(LOSSES[name], (x, y, scale))
        for _ in range(5):
            again = gradients(LOSSES[name], (x, y, scale))
            assert all(map(torch.equal, first, again))
    finally:
        torch.use_deterministic_algorithms(False)


@needs_cuda
def test_no_synchronisation_with_a_learned_temperature():
    x, y = rows(100, 64), rows(100, 64)
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)
    cl_kernels.clip(x, y, scale).backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        cl_kernels.clip(x, y, scale).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_the_similarity_matrix_is_never_held():
    x, y = rows(16384, 64, torch.bfloat16), rows(16384, 64, torch.bfloat16)
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cl_kernels.clip(x, y, scale).backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 16384**2, f"{peak / 1e6:.0f} MB"  # half of the matrix in bfloat16
