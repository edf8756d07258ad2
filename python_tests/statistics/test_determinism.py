"""Native results are the same bits at every thread count and every time."""

import pytest
import torch

import cl_kernels
from python_tests.conftest import skip_unless_usable
from python_tests.helpers import (
    LOSSES,
    PRIMITIVES,
    call_loss,
    check_primitive,
    embeddings,
    filters,
    gradients,
    leaf,
    statistics,
    unit_rows,
    upstream_like,
)

SIZES = {"small": (150, 90), "ragged": (700, 1300), "tall": (3000, 200), "many tiles": (4200, 4100)}
TRAINED = ("query key", "query", "key")


@pytest.fixture(scope="module", autouse=True)
def native():
    skip_unless_usable("native")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same_bits(compute, repeats=1):
    """One run on a thread, then the same on two and four, each so many times."""
    torch.set_num_threads(1)
    first = compute()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        for _ in range(repeats):
            for name, (a, b) in enumerate(zip(first, compute(), strict=True)):
                assert torch.equal(a, b), f"result {name} differs on {threads} threads"


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["none", "not me", "not me, same"])
@pytest.mark.parametrize("trained", TRAINED)
def test_primitives(primitive, size, kind, trained):
    M, N = SIZES[size]
    if primitive == "self_logsumexp":
        if trained == "key":
            pytest.skip("has no keys")
        N = M
    query, key = embeddings(M, N, 24, peaked=True)
    where = filters(kind, M, N)
    upstream = None

    def compute():
        nonlocal upstream
        leaves = [leaf(query, "query" in trained), leaf(key, "key" in trained)]
        leaves.append(torch.tensor(7.0, requires_grad=True))
        if primitive == "self_logsumexp":
            leaves[1].requires_grad_(False)
        results = statistics(primitive, *leaves, where=where, backend="native")
        upstream = upstream or upstream_like(results)
        grads = gradients(results, upstream, leaves)
        return [*(r.detach() for r in results), *(g for g in grads if g is not None)]

    same_bits(compute)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    x, _ = embeddings(900, 10, 16, dtype, peaked=True)

    def compute():
        z = leaf(x, True)
        lse = cl_kernels.self_logsumexp(z, 9.0, backend="native")
        (grad,) = torch.autograd.grad(lse.sum(), z)
        return lse.detach(), grad

    same_bits(compute)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss):
    """At 4096 rows and more: positives, normalisation and reductions too, not the kernels alone."""
    first, second = (torch.randn(2100 if loss == "nt_xent" else 4100, 32) for _ in range(2))

    def compute():
        a, b = leaf(first, True), leaf(second, True)
        temperature = torch.tensor(0.1, requires_grad=True)
        value = call_loss(loss, a, b, 1 / temperature, backend="native")
        return value.detach(), *torch.autograd.grad(value, (a, b, temperature))

    same_bits(compute)


def test_many_threads_on_few_rows():
    """More threads than tiles, more threads than cores."""
    query, key = embeddings(40, 70, 8)

    def compute():
        q, k = leaf(query, True), leaf(key, True)
        row, col = cl_kernels.row_col_logsumexp(q, k, 5.0, backend="native")
        return row.detach(), *torch.autograd.grad(row.sum() + col.sum(), (q, k))

    same_bits(compute, repeats=20)


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_four_threads_are_right_too(primitive):
    torch.set_num_threads(4)
    for size in ((150, 90), (700, 1300)):
        M, N = size if primitive != "self_logsumexp" else (sum(size),) * 2
        where = filters("not me, same", M, N)
        query, key = embeddings(M, N, 24, peaked=True)
        check_primitive(primitive, query, key, 20.0, where=where, backend="native")


@pytest.mark.parametrize("fold", ["logsumexp", "softplus_sum"])
@pytest.mark.parametrize("sides", ["row", "row_col", "self"])
def test_gradients_of_biases(sides, fold):
    """Rows and columns each own one of them: tiles so small that threads always meet."""
    query, key = embeddings(1024, 1024, 1)

    def compute():
        biases = [torch.zeros(1024, requires_grad=True) for _ in range(2)]
        options = {"query_bias": biases[0], "key_bias": biases[1], "backend": "native"}
        inputs = (key,) if sides == "self" else (query, key)
        values = getattr(cl_kernels, f"{sides}_{fold}")(*inputs, 1.0, **options)
        values = values if isinstance(values, tuple) else (values,)
        return torch.autograd.grad(values, biases, [torch.ones_like(v) for v in values])

    same_bits(compute, repeats=100)


def test_a_key_that_is_the_target_of_many():
    """Its gradient is added up in one order, whichever way the loss goes."""
    torch.manual_seed(0)
    query, key = unit_rows(520, 64), unit_rows(527, 64).requires_grad_()
    target, own = torch.randint(0, 8, (520,)), unit_rows(520, 64)[:, None]
    ways = (
        {"negative_keys": unit_rows(256, 64), "in_batch_negatives": True},
        {"negative_keys": own, "in_batch_negatives": True},
        {"negative_keys": unit_rows(256, 64), "reduction": "none"},
    )
    torch.set_num_threads(2)
    for options in ways:
        losses = cl_kernels.info_nce(query, key, target=target, **options)
        found = {
            torch.autograd.grad(losses.sum(), key, retain_graph=True)[0].numpy().tobytes()
            for _ in range(20)
        }
        assert len(found) == 1
