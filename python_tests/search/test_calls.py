"""topk as a call: arguments, gradients, streaming, progress, interrupts, torch.compile."""

import threading

import numpy as np
import pytest
import torch

import cl_kernels
from cl_kernels import PairFilter, topk
from cl_kernels.pairs import Pairs
from cl_kernels.search import scan, stream
from cl_kernels.search.scores import nothing_found
from python_tests.helpers import operator


def some(M=6, N=11, D=5, dtype=torch.float64):
    return torch.randn(M, D, dtype=dtype), torch.randn(N, D, dtype=dtype)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("largest", [True, False])
def test_gradcheck(backend, normalize, largest):
    query, key = (x.requires_grad_() for x in some())
    ids = torch.arange(6), torch.arange(11)
    where = PairFilter(*ids, "different")

    def values(query, key):
        found = topk(
            query, key, 12, normalize=normalize, largest=largest, where=where, backend=backend
        )
        return found.values.masked_fill(found.indices < 0, 0)

    assert torch.autograd.gradcheck(values, (query, key))
    assert torch.autograd.gradcheck(lambda q: values(q, key.detach()), (query,))
    assert torch.autograd.gradcheck(lambda k: values(query.detach(), k), (key,))


def test_gradients_in_blocks_and_half_types(monkeypatch):
    query, key = some(50, 70, 16, torch.float32)
    weights = torch.randn(50, 4)

    def gradients(dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (query, key)]
        found = topk(*leaves, 4, backend="reference")
        return torch.autograd.grad((found.values * weights).sum(), leaves)

    whole = gradients(torch.float32)
    monkeypatch.setattr("cl_kernels.search.gradients._GATHERED", 500)
    for ours, expected in zip(gradients(torch.float32), whole, strict=True):
        torch.testing.assert_close(ours, expected)
    exact = [x.bfloat16().double().requires_grad_() for x in (query, key)]
    pairs = topk(exact[0].bfloat16(), exact[1].bfloat16(), 4).indices
    unit = [torch.nn.functional.normalize(x) for x in exact]
    values = torch.einsum("md,mkd->mk", unit[0], unit[1][pairs])
    truth = torch.autograd.grad((values * weights.double()).sum(), exact)
    for ours, expected in zip(gradients(torch.bfloat16), truth, strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.double() - expected).norm() / expected.norm()
        assert error < 4e-3


def test_unfilled_places_have_no_gradient():
    query, key = (x.requires_grad_() for x in some(2, 3))
    with torch.no_grad():
        key[0] = torch.nan  # the stand-in for what was not found
    found = topk(query, key, 5, normalize=False)
    found.values.masked_fill(found.indices < 0, 0).sum().backward()
    torch.testing.assert_close(query.grad, key[1:].sum(0).expand(2, -1))
    assert (key.grad[0] == 0).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_a_query_that_is_not_a_number_has_no_gradient(normalize):
    query, key = some()
    query[2, 1] = torch.nan
    query, key = query.requires_grad_(), key.requires_grad_()
    found = topk(query, key, 3, normalize=normalize)
    found.values.masked_fill(found.indices < 0, 0).sum().backward()
    assert (query.grad[2] == 0).all()
    assert query.grad.isfinite().all() and key.grad.isfinite().all()


def test_bounds_keep_the_precision_of_the_scores():
    query = torch.ones(1, 1, dtype=torch.float64)
    key = torch.tensor([[0.3], [0.3000000001]], dtype=torch.float64)
    below = topk(query, key, 2, normalize=False, below=0.3)
    above = topk(query, key, 2, normalize=False, above=0.3)
    assert below.indices.tolist() == [[-1, -1]] and above.indices.tolist() == [[1, -1]]


def test_no_graph_without_a_need():
    query, key = some()
    assert not topk(query, key, 2).values.requires_grad
    with torch.no_grad():
        assert not topk(query.requires_grad_(), key, 2).values.requires_grad
    assert topk(query, key, 2).values.requires_grad
    assert not topk(query, key, 2).indices.requires_grad


def test_double_backward_is_refused():
    query, key = some()
    values = topk(query.requires_grad_(), key, 2).values
    with pytest.raises(RuntimeError, match=r"double backward.*not supported"):
        torch.autograd.grad(values.sum(), query, create_graph=True)


def ids(*values):
    return torch.tensor(values)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"k": 0}, ValueError, r"k: expected 1 to 2147483647, got 0"),
        ({"k": 2**62}, ValueError, r"k: expected 1 to 2147483647, got 4611686018427387904"),
        ({"k": 2.0}, TypeError, r"k: expected an integer, got float"),
        ({"k": True}, TypeError, r"k: expected an integer, got bool"),
        ({"query": torch.randn(4)}, ValueError, r"query: expected embeddings of shape"),
        ({"key": torch.randn(5, 2)}, ValueError, r"key: expected the width of query, 3, got 2"),
        ({"key": [[1.0]]}, TypeError, r"key: expected a tensor, got list"),
        (
            {"key": torch.eye(3).to_sparse()},
            TypeError,
            r"key: expected a dense tensor, got a .*coo",
        ),
        ({"keep": torch.ones(4, 4).bool()}, ValueError, r"keep: expected a mask of shape \[4, 5\]"),
        (
            {"keep": torch.ones(4, 5)},
            TypeError,
            r"keep: expected a boolean tensor, got torch.float",
        ),
        ({"exclude": [[0], [5], [], []]}, ValueError, r"exclude: expected keys in \[0, 5\)"),
        ({"exclude": [[0], [1]]}, ValueError, r"exclude: lists: expected one for each of 4 rows"),
        ({"exclude": {4: [1]}}, ValueError, r"exclude: lists: expected rows from 0 below 4"),
        ({"exclude": [["a"], [], [], []]}, TypeError, r"exclude: lists: expected lists of int"),
        ({"key": np.zeros((5, 3), "f4")[::-1]}, ValueError, r"key: expected an array that torch"),
        ({"key": torch.randn(5, 3, device="meta")}, ValueError, r"key: expected host memory or"),
        ({"below": torch.zeros(3)}, ValueError, r"below: expected .* each of the 4 queries"),
        ({"above": torch.zeros(4, 1)}, ValueError, r"above: expected .* got shape \[4, 1\]"),
        ({"below": "1"}, TypeError, r"below: expected a number or a tensor, got str"),
        ({"above": torch.zeros(4).long()}, TypeError, r"above: .* torch.int64"),
        ({"below": float("nan")}, ValueError, r"below: expected numbers, got a NaN"),
        ({"exclude": ids(0, 1)}, ValueError, r"exclude: expected one row for each of the 4"),
        ({"exclude": ids(0, 1, 5, 2)}, ValueError, r"exclude: expected keys in \[0, 5\)"),
        ({"exclude": (ids(0, 2, 1, 1, 1), ids(0))}, ValueError, r"exclude: expected rising"),
        ({"where": PairFilter(ids(1), ids(1), "same")}, ValueError, r"where: expected query_ids"),
        ({"backend": "fast"}, ValueError, r"backend: expected one of"),
    ],
)
def test_bad_arguments(change, error, message, monkeypatch):
    def never(*_):
        raise AssertionError("work began")

    monkeypatch.setattr(scan.Search, "run", never)
    arguments = {"query": torch.randn(4, 3), "key": torch.randn(5, 3), "k": 2} | change
    with pytest.raises(error, match=message):
        topk(**arguments)


@pytest.mark.parametrize("largest", [True, False])
def test_streamed_keys_give_the_same(monkeypatch, largest):
    """On one device the stream's blocks can be forced; a GPU is needed for the copies."""
    query, key = torch.randint(-2, 3, (2, 200, 6)).float()
    query = query[:30]
    where = PairFilter(torch.arange(30) % 5, torch.arange(200) % 7, "different")
    exclude = torch.randint(0, 200, (30, 4))
    options = {"where": where, "exclude": exclude, "below": 9.0, "largest": largest}
    whole = topk(query, key, 20, normalize=False, **options)
    monkeypatch.setattr(stream, "_BLOCK_BYTES", 6 * 4 * 33)
    monkeypatch.setattr(scan.Search, "run", scan.Search._streamed)
    parts = topk(query, key, 20, normalize=False, **options)
    assert torch.equal(parts.indices, whole.indices) and torch.equal(parts.values, whole.values)


def test_queries_in_blocks_give_the_same(monkeypatch):
    query, key = torch.randn(700, 6), torch.randn(90, 6)
    below = torch.rand(700)
    options = {"exclude": torch.randint(0, 90, (700, 4)), "below": below}
    options["where"] = PairFilter(torch.arange(700) % 5, torch.arange(90) % 7, "different")
    whole = topk(query, key, 20, **options)
    monkeypatch.setattr(scan, "_CALL_PRODUCTS", 1)
    parts = topk(query, key, 20, **options)
    assert torch.equal(parts.indices, whole.indices) and torch.equal(parts.values, whole.values)


def test_memory_maps(tmp_path):
    query, key = some(5, 300, 8, torch.float32)
    np.save(tmp_path / "corpus.npy", key.numpy())
    corpus = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    assert torch.equal(topk(query, corpus, 7).indices, topk(query, key, 7).indices)


def test_progress_and_interrupt(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    query, key = some(600, 40, 8, torch.float32)
    expected = topk(query, key, 3)
    monkeypatch.setattr(scan, "_CALL_PRODUCTS", 1)
    assert torch.equal(topk(query, key, 3, progress=True).indices, expected.indices)
    assert "600/600" in capsys.readouterr().err

    rows = scan.Search._rows
    calls = []

    def interrupted(self, part):
        calls.append(part)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rows(self, part)

    monkeypatch.setattr(scan.Search, "_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        topk(query, key, 3, progress=True)
    monkeypatch.setattr(scan.Search, "_rows", rows)
    assert torch.equal(topk(query, key, 3).indices, expected.indices)


def test_progress_without_tqdm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="progress: a progress bar needs tqdm"):
        topk(*some(), 2, progress=True)


def test_from_several_threads():
    query, key = some(40, 500, 8, torch.float32)
    expected, found = topk(query, key, 9), [None] * 4

    def search(i):
        found[i] = topk(query, key, 9)

    threads = [threading.Thread(target=search, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(f.indices, expected.indices) for f in found)


def test_compiled_in_one_graph(backend):
    torch._dynamo.reset()
    query, key = (x.requires_grad_() for x in some(6, 11, 5, torch.float32))

    def values(query, key):
        return topk(query, key, 3, backend=backend).values.square().sum()

    compiled = torch.compile(values, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key), values(query, key))
    ours = torch.autograd.grad(compiled(query, key), (query, key))
    for a, b in zip(ours, torch.autograd.grad(values(query, key), (query, key)), strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(backend, dtype):
    query, key = some(dtype=dtype)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = {n: torch.rand(n, dtype=accumulator) for n in (6, 11)}
    plain = (query, key, 3, None, None, None, None, *Pairs())
    filters = [torch.arange(6) % 2], [torch.arange(11) % 2], [True]
    lists = torch.arange(7), torch.arange(6)
    bounds = numbers[6], -numbers[6]
    full = (query, key, 3, numbers[6], numbers[11], *lists, *Pairs(*filters, *bounds))
    for arguments in (plain, full):
        torch.library.opcheck(operator("topk", backend), arguments)


def test_explain_makes_no_search(monkeypatch):
    explanation = cl_kernels.explain(topk, *some(), 3)
    assert "topk: 6 x 11 pairs" in str(explanation)


def test_nothing_found_is_what_an_empty_search_gives():
    query, _ = some()
    empty = topk(query, query[:0], 3)
    for ours, expected in zip(nothing_found(query, 3), empty, strict=True):
        assert torch.equal(ours, expected)
