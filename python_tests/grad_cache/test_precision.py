"""GradCache with autocast, scalers, compiled encoders and on GPUs, and how much memory it takes."""

import copy

import pytest
import torch

from benchmarks.grad_cache import measure_fresh, report
from benchmarks.memory import can_measure
from cl_kernels.grad_cache import GradCache
from python_tests.grad_cache.towers import (
    CHUNK,
    EXACT,
    batch,
    encoder,
    gradients,
    in_chunks,
    loss_function,
)


def test_autocast():
    """Around the call, as around a forward pass."""
    module = encoder(dropout=0.3, dtype=torch.float32)
    x, y = batch().float(), batch().float()
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_function(in_chunks(module, x), in_chunks(module, y))
    expected.backward()
    expected_gradients = gradients(module)
    dtypes = []

    def loss_of(*embeddings):
        dtypes.extend(e.dtype for e in embeddings)
        return loss_function(*embeddings)

    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16):
        loss = GradCache(module, loss_of, chunk_size=CHUNK).step(x, y)
        assert torch.is_autocast_enabled("cpu")
    assert dtypes == [torch.bfloat16] * 2
    torch.testing.assert_close(loss, expected.detach())
    # The graph of one batch sums a weight's gradient in bfloat16, chunks theirs in float32.
    torch.testing.assert_close(gradients(module), expected_gradients, rtol=0.05, atol=2e-3)


def test_backward_passes_are_kept_out_of_autocast():
    seen = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch.is_autocast_enabled("cpu"))
            return grad

    module = encoder(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        GradCache(
            lambda x: Spy.apply(module(x)),
            lambda x, y: loss_function(Spy.apply(x), y),
            chunk_size=11,
        ).step(batch().float(), batch().float())
    assert seen == [False] * 5


def test_grad_scaler():
    module = encoder(dtype=torch.float32)
    x, y = batch().float(), batch().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_function(module(x), module(y))).backward()
    expected = gradients(module)
    cache = GradCache(module, loss_function, chunk_size=CHUNK, scaler=scaler)
    loss = cache.step(x, y)
    torch.testing.assert_close(loss, loss_function(module(x), module(y)).detach())
    torch.testing.assert_close(
        [p.grad for p in module.parameters()], expected, rtol=1e-4, atol=1e-4
    )

    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = copy.deepcopy(module.state_dict())
    optimizer.zero_grad()
    cache.step(x * torch.inf, y)  # not finite: the scaler skips the step
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert scaler.get_scale() == 512


def test_compiled_encoder():
    module = encoder(dropout=0.5)
    compiled = torch.compile(module, backend="aot_eager")
    x, y = batch(), batch()
    torch.manual_seed(7)
    GradCache(module, loss_function, chunk_size=11).step(x, y)
    expected = gradients(module)
    torch.manual_seed(7)
    GradCache(compiled, loss_function, chunk_size=11).step(x, y)
    torch.testing.assert_close(gradients(module), expected, **EXACT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("embedding_device", [None, "cpu"])
def test_cuda(embedding_device):
    """Inputs wait on the CPU; dropout draws from the GPU's generator."""
    module = encoder(dropout=0.5).cuda()
    x, y = batch(), batch()
    torch.manual_seed(7)
    loss_function(in_chunks(module, x.cuda()), in_chunks(module, y.cuda())).backward()
    state, expected = torch.cuda.get_rng_state(), gradients(module)
    torch.manual_seed(7)
    cache = GradCache(
        module, loss_function, chunk_size=CHUNK, device="cuda", embedding_device=embedding_device
    )
    assert cache.step(x, y).device.type == (embedding_device or "cuda")
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.testing.assert_close(gradients(module), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not can_measure(), reason="no /proc/self/clear_refs")
def test_memory_does_not_grow_with_the_activations_of_the_batch():
    limit = 48e6
    cached = measure_fresh(192, 8, threads=1)
    whole = measure_fresh(48, None, threads=1)
    assert cached["peak_extra_bytes"] < limit < whole["peak_extra_bytes"]
    _, _, *rows = report([whole, cached]).splitlines()
    assert [row.split()[1] for row in rows] == ["48", "192"]
