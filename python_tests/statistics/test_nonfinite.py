"""NaN and inf poison what depends on them and nothing else; rows with no kept key are inert."""

import pytest
import torch

import cl_kernels
from catalogue import textbook
from cl_kernels import PairFilter
from python_tests.helpers import (
    LOSSES,
    PRIMITIVES,
    call_loss,
    embeddings,
    filters,
    gradients,
    leaf,
    statistics,
    upstream_like,
)

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
each_primitive = pytest.mark.parametrize("primitive", PRIMITIVES)
SCALE = 6.0


def poisoned(primitive, keep, bad_query, bad_key):
    """Which rows of each result and of each gradient depend on a NaN row, by definition."""
    pair = keep & (bad_query[:, None] | bad_key)
    row, col = pair.any(1), pair.any(0)
    weights = keep & row[:, None]
    if primitive == "row_col_logsumexp":
        weights = weights | (keep & col)
    grad_query, grad_key = weights.any(1), weights.any(0)
    if primitive == "self_logsumexp":
        return [row], [grad_query | grad_key]
    return [row, col][: 1 + (primitive == "row_col_logsumexp")], [grad_query, grad_key]


def evaluate(compute, inputs, trained):
    """Results and gradients from one fixed upstream."""
    leaves = [leaf(x, name in trained) for name, x in zip(NAMES, inputs, strict=False)]
    results = compute(leaves)
    torch.manual_seed(1)
    return results, gradients(results, upstream_like(results), leaves)


NAMES = ("query", "key")
CASES = {  # NaN rows among the queries and keys, M, N, D
    "one query": ([3], [], 9, 8, 6),
    "one key": ([], [5], 9, 8, 6),
    "both": ([0, 8], [7], 9, 8, 70),
    "far apart": ([2, 600], [1100], 700, 1300, 70),
}


@each_primitive
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", ["none", "same", "not me, same", "different"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("trained", ["query key", "query", "key"])
def test_poison_stays_where_it_belongs(backend, primitive, case, kind, value, trained):
    bad_queries, bad_keys, M, N, D = CASES[case]
    query, key = embeddings(M, N, D, peaked=True)
    if primitive == "self_logsumexp":
        if trained == "key":
            pytest.skip("has no keys")
        bad_queries, N, key = bad_queries + bad_keys, M, query
    bad_queries = [i for i in bad_queries if i < M]
    where = filters(kind, M, N)
    keep = textbook.kept(where, M, N)

    def compute(leaves):
        return statistics(primitive, leaves[0], leaves[-1], SCALE, where=where, backend=backend)

    def inputs(fill):
        q, k = query.clone(), key.clone()
        q[bad_queries, 2] = fill
        if primitive == "self_logsumexp":
            return (q,)
        k[bad_keys, 1:] = fill
        return q, k

    bad_query, bad_key = torch.zeros(M, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
    bad_query[bad_queries] = True
    bad_key[bad_queries if primitive == "self_logsumexp" else bad_keys] = True
    results, grads = evaluate(compute, inputs(value), trained)
    # What does not depend on the poisoned rows must not notice what they hold.
    clean_results, clean_grads = evaluate(compute, inputs(0.5), trained)
    expected = poisoned(primitive, keep, bad_query, bad_key)
    pairs = [*zip(results, clean_results, expected[0], strict=True)]
    pairs += zip(grads, clean_grads, expected[1], strict=True)
    for ours, clean, bad in pairs:
        if ours is None:
            continue
        torch.testing.assert_close(ours[~bad], clean[~bad], rtol=1e-5, atol=1e-6)
        if value != value:  # an infinite logit may also be -inf, and then weighs nothing
            assert not ours[bad].isfinite().any()


@each_primitive
@pytest.mark.parametrize("trained", ["query key scale", "query scale", "query", "key", "scale"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_no_pair_keeps_is_inert(backend, primitive, value, trained):
    """A padded row full of NaN, filtered out everywhere, even from the scale's gradient."""
    x, key = embeddings(12, 12, 5)
    live = torch.arange(12) != 4
    ids = torch.where(live, 0, torch.arange(12) + 1)
    other_ids = torch.where(live, 0, -torch.arange(12) - 1)
    padding = PairFilter(ids, other_ids, "same")

    def run(x, key, where):
        leaves = [leaf(x, "query" in trained), leaf(key, "key" in trained)]
        leaves.append(torch.tensor(SCALE, requires_grad="scale" in trained))
        if primitive == "self_logsumexp":
            leaves[1].requires_grad_(False)
        results = statistics(primitive, *leaves, where=where, backend=backend)
        if not any(r.requires_grad for r in results):
            pytest.skip("nothing is trained")
        upstream = [torch.linspace(-1, 2, len(r)) for r in results]
        return results, upstream, leaves

    bad_x, bad_key = x.clone(), key.clone()
    bad_x[4], bad_key[4] = value, value
    results, upstream, leaves = run(bad_x, bad_key, padding)
    for g in upstream:
        g[4] = torch.nan  # nothing of an empty row counts, not even its upstream gradient
    grads = gradients(results, upstream, leaves)
    shorter, _, shorter_leaves = run(x[live], key[live], ())
    shorter_grads = gradients(shorter, [g[live] for g in upstream], shorter_leaves)
    for ours, truth in zip(results, shorter, strict=True):
        assert ours[4] == -torch.inf
        torch.testing.assert_close(ours[live], truth, rtol=1e-5, atol=1e-6)
    for ours, truth in zip(grads[:2], shorter_grads[:2], strict=True):
        if ours is not None:
            assert torch.equal(ours[4], torch.zeros(5))
            torch.testing.assert_close(ours[live], truth, rtol=1e-5, atol=1e-6)
    if "scale" in trained:
        torch.testing.assert_close(grads[2], shorter_grads[2], rtol=1e-5, atol=1e-5)


@each_primitive
@pytest.mark.parametrize("kind", ["nothing left", "same"])
@pytest.mark.parametrize("trained", ["query key scale", "query", "scale"])
def test_rows_with_no_kept_key(backend, primitive, kind, trained):
    """-inf and zero gradient, whatever comes from upstream."""
    M, N = (40, 40) if primitive == "self_logsumexp" else (40, 3)
    query, key = embeddings(M, N, 6)
    where = filters(kind, M, N)
    if kind == "same":
        lonely = torch.arange(M) % 4 == 1
        where[0].query_ids[lonely] = 99
    keep = textbook.kept(where, M, N)
    assert not keep.all(1).any()
    leaves = [leaf(query, "query" in trained), leaf(key, "key" in trained)]
    leaves.append(torch.tensor(SCALE, requires_grad="scale" in trained))
    if primitive == "self_logsumexp":
        leaves[1].requires_grad_(False)
    results = statistics(primitive, *leaves, where=where, backend=backend)
    upstream = []
    for result, empty in zip(results, (~keep.any(1), ~keep.any(0)), strict=False):
        assert torch.equal(result == -torch.inf, empty)
        upstream.append(torch.ones_like(result).masked_fill(empty, torch.nan))
    grads = gradients(results, upstream, leaves)
    assert all(g is None or g.isfinite().all() for g in grads)
    if grads[0] is not None and primitive != "self_logsumexp":
        assert (grads[0][~keep.any(1)] == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_one_nan_row_in_a_batch_is_seen(backend, loss):
    """Every row has the NaN row as a negative: the loss must not hide it."""
    a, b = embeddings(8, 8, 4)
    a[3] = torch.nan
    a.requires_grad_()
    result = call_loss(loss, a, b, 5.0, backend=backend)
    assert result.isnan()


def test_nan_images_that_a_filter_drops_poison_only_their_own_rows(backend):
    a, b = embeddings(10, 10, 4)
    a[3] = torch.nan
    image = torch.arange(10).repeat(2)
    broken = torch.where(image == 3, torch.arange(20), -1)
    where = PairFilter(broken, torch.where(image == 3, -2, -1), "same")
    a.requires_grad_()
    losses = cl_kernels.nt_xent(a, b, where=where, reduction="none", backend=backend)
    mine = image == 3
    assert losses[mine].isnan().all()
    assert losses[~mine].isfinite().all()
    (grad,) = torch.autograd.grad(losses[~mine].sum(), a)
    rest = torch.arange(10) != 3
    assert grad[rest].isfinite().all()
