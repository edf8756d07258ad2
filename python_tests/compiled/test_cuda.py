"""The package on a CUDA GPU: losses, compilation, graphs and repeatability with its own choice of
backend, and top-K by CUDA C++. CL_KERNELS_TEST_DEVICE=cpu runs what can be run without one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cl_kernels
from cl_kernels import CSR, PairFilter
from cl_kernels._dispatch import reason_against
from python_tests.devices import DEVICE, REHEARSED
from python_tests.search import oracle

ERROR = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}

needs_cuda = pytest.mark.skipif(DEVICE == "cpu" and not REHEARSED, reason="needs a CUDA GPU")
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
def test_no_synchronisation_by_a_gradient_cache():
    """But for the first step, which checks that encodings repeat themselves."""
    encoder = torch.nn.Embedding(50, 8, device=DEVICE)
    cache = cl_kernels.GradCache(
        lambda ids, attention_mask: encoder(ids).sum(1), cl_kernels.ClipLoss(), max_tokens=40
    )
    mask = (torch.arange(7) <= torch.arange(20)[:, None] % 7).long()  # on the host, as chunks are
    texts = {"ids": torch.randint(50, (20, 7), device=DEVICE), "attention_mask": mask}
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)
    cache.step(texts, texts, logit_scale=scale)
    torch.cuda.set_sync_debug_mode("error")
    try:
        cache.step(texts, texts, logit_scale=scale)
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


def native_or_skip(dtype=torch.float32):
    if reason := reason_against("native", DEVICE, dtype):
        pytest.skip(f"native: {reason}")


def whole_numbers(count, width, dtype):
    """Embeddings whose inner products are exact in every dtype, and full of ties."""
    return torch.randint(-2, 3, (count, width)).to(dtype)


def assert_found(found, values, indices):
    np.testing.assert_array_equal(found[1].cpu().numpy(), indices)
    np.testing.assert_array_equal(found[0].double().cpu().numpy(), values)


# Queries that are padded, some tiles of them and a ragged one; keys of one slab and of several.
@pytest.mark.parametrize("dtype", [*ERROR, torch.float64], ids=str)
@pytest.mark.parametrize("M, N", [(3, 5000), (600, 700), (5, 90_000)])
def test_topk_by_native(dtype, M, N):
    native_or_skip(dtype)
    query, key = whole_numbers(M, 8, dtype), whole_numbers(N, 8, dtype)
    exact = oracle.scores(query, key, normalize=False)
    query, key = query.to(DEVICE), key.to(DEVICE)
    for k in (1, 100, 1500, 6000):
        expected = oracle.topk(exact, np.ones((M, N), dtype=bool), k)
        assert_found(cl_kernels.topk(query, key, k, normalize=False, backend="native"), *expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("N", [2000, 70_000])
def test_topk_by_native_inside_filters(dtype, N):
    native_or_skip(dtype)
    M = 70
    query, key = whole_numbers(M, 8, dtype), whole_numbers(N, 8, dtype)
    key[5], query[7] = torch.nan, torch.nan
    offsets = torch.arange(M + 1) * 30
    options = {
        "where": [
            PairFilter(torch.randint(5, (M,)), torch.randint(5, (N,)), "different"),
            PairFilter(torch.randint(2, (M,)) << 40, torch.randint(2, (N,)) << 40, "same"),
        ],
        "exclude": CSR(offsets, torch.randint(N, (30 * M,))),
        "below": torch.randint(0, 9, (M,)).to(dtype),
        "above": torch.full((M,), -5, dtype=dtype),
    }
    exact = oracle.scores(query, key, normalize=False)
    expected = oracle.topk(exact, oracle.kept((M, N), of=exact, **options), 300)
    options["where"] = [
        PairFilter(f.query_ids.to(DEVICE), f.key_ids.to(DEVICE), f.keep) for f in options["where"]
    ]
    options["exclude"] = CSR(*(x.to(DEVICE) for x in options["exclude"]))
    options |= {name: options[name].to(DEVICE) for name in ("below", "above")}
    found = cl_kernels.topk(
        query.to(DEVICE), key.to(DEVICE), 300, normalize=False, backend="native", **options
    )
    assert_found(found, *expected)


def test_a_topk_by_native_does_not_depend_on_its_batch():
    native_or_skip()
    query, key = torch.randn(700, 37, device=DEVICE), torch.randn(3000, 37, device=DEVICE)
    key[2000:2100] = key[:100]  # ties must fall alike as well
    whole = cl_kernels.topk(query, key, 30, backend="native")
    for part in (slice(0, 1), slice(699, 700), slice(100, 229), slice(3, 520)):
        found = cl_kernels.topk(query[part].contiguous(), key, 30, backend="native")
        assert torch.equal(found.indices, whole.indices[part])
        assert torch.equal(found.values, whole.values[part])


# A warp a row, a block a row in shared memory, and in global memory.
@pytest.mark.parametrize("M", [3, 600])
@pytest.mark.parametrize("k", [1, 10, 33, 100, 256, 257, 4096, 5000])
def test_selection_among_survivors(M, k):
    native_or_skip()
    parts, capacity = (40, 300) if M < 100 else (3, 200)
    scores = np.random.default_rng(k).integers(-9, 10, (M, parts * capacity)).astype(np.float32)
    bits = (scores + 0).view(np.int32)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    packed = torch.from_numpy(order << 32 | 0xFFFFFFFF - np.arange(parts * capacity))
    packed = packed.reshape(M, parts, capacity)
    packed[:, 1, 7] = -(2**63)  # a place without a pair
    counts = torch.randint(0, capacity + 1, (M, parts), dtype=torch.int32)
    counts[0] = 0
    valid = (torch.arange(capacity) < counts[..., None]) & (packed != -(2**63))
    expected = oracle.topk(scores, valid.reshape(M, -1).numpy(), k)
    found = torch.ops.cl_kernels.select_topk(packed.to(DEVICE), counts.to(DEVICE), k)
    assert_found(found, *expected)


@needs_cuda
@pytest.mark.parametrize("k", [10, 4096])
def test_workspace_of_topk_by_native(k):
    query, key = (torch.randn(count, 64, device=DEVICE) for count in (2000, 200_000))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cl_kernels.topk(query, key, k, normalize=False, backend="native")
    peak = torch.cuda.max_memory_allocated() - before - 2000 * k * 12
    assert peak <= 64 << 20, f"{peak / 1e6:.0f} MB"
