"""The k best keys by the Triton scan, against a dense oracle.

Embeddings are small integers and factors powers of two, so that every score is exact, many are
equal, and values and indices must be too.
"""

import numpy as np
import pytest
import torch

from cl_kernels import PairFilter, topk
from cl_kernels.backends import triton as kernels
from cl_kernels.backends.gpu import rounds
from cl_kernels.backends.triton import configs
from cl_kernels.pairs import Pairs
from python_tests.search import oracle

from .cases import DEVICE, DTYPES, ids

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN")  # of the interpreter's maximum


@pytest.fixture(autouse=True)
def few_places(monkeypatch):
    """Several rounds, whatever the size."""
    monkeypatch.setattr(rounds, "FEW_KEYS", 0)


def integers(*size, most=3, dtype=torch.float32):
    return torch.randint(-most, most + 1, size).to(device=DEVICE, dtype=dtype)


def powers(length):
    return 2.0 ** torch.randint(-1, 2, (length,), device=DEVICE)


def lists(M, N, most=9):
    """CSR of up to ``most`` keys a row, one of them twice."""
    rows = [torch.randperm(N)[: torch.randint(most, ()).item()].sort().values for _ in range(M)]
    rows = [torch.cat([row[:1], row]) for row in rows]
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return offsets.to(DEVICE), torch.cat(rows).to(DEVICE)


def options(M, N, everything=True):
    """query_factor, key_factor, exclude, pairs."""
    if not everything:
        return None, None, None, None, Pairs()
    filters = (ids(M, 3), ids(M)), (ids(N, 3), ids(N)), (True, False)
    below, above = integers(M, most=30) + 31.0, integers(M, most=30) - 31.0
    return -powers(M), powers(N), *lists(M, N), Pairs(*filters, below, above)


def expected(query, key, k, factors, exclude, pairs):
    scores = oracle.scores(query.cpu(), key.cpu(), normalize=False)
    query_factor, key_factor = (1.0 if f is None else f.cpu().double().numpy() for f in factors)
    scores = scores * key_factor * np.reshape(query_factor, (-1, 1))
    bounds = {name: getattr(pairs, name).cpu().numpy() for name in pairs.options}
    where = [
        PairFilter(q.cpu(), j.cpu(), "same" if same else "different")
        for q, j, same in pairs.filters
    ]
    exclude = None if exclude[0] is None else [x.cpu() for x in exclude]
    keep = oracle.kept(scores.shape, where=where, exclude=exclude, of=scores, **bounds)
    values, indices = oracle.topk(scores, keep, k)
    return torch.tensor(values, dtype=torch.float32), torch.tensor(indices)


def check(query, key, k, chosen):
    query_factor, key_factor, offsets, keys, pairs = chosen
    values, indices = kernels.topk(query, key, k, *chosen)
    exact = expected(query, key, k, (query_factor, key_factor), (offsets, keys), pairs)
    assert values.dtype == torch.float32 and indices.dtype == torch.int64
    assert torch.equal(values.cpu(), exact[0])
    assert torch.equal(indices.cpu(), exact[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("everything", [False, True])
def test_dtypes_and_options(dtype, everything):
    M, N = 40, 300
    query, key = integers(M, 24, dtype=dtype), integers(N, 24, dtype=dtype)
    check(query, key, 5, options(M, N, everything))


@pytest.mark.parametrize(
    ("M", "N", "D", "k"),
    [(1, 1, 1, 1), (1, 100, 3, 7), (33, 1, 16, 2), (64, 256, 16, 1), (5, 130, 300, 20)],
)
def test_shapes(M, N, D, k):
    """Ragged and whole tiles, and k beyond the number of keys."""
    check(integers(M, D), integers(N, D), k, options(M, N, M > 1))


@pytest.mark.parametrize("M", [0, 3])
def test_nothing_to_find(M):
    values, indices = kernels.topk(
        integers(M, 4), integers(0 if M else 9, 4), 2, *options(M, 9, False)
    )
    assert values.shape == indices.shape == (M, 2)
    assert torch.equal(values, torch.full_like(values, -torch.inf))
    assert torch.equal(indices, torch.full_like(indices, -1))


@pytest.mark.parametrize("key", [torch.zeros(300, 4), torch.ones(300, 4)])
def test_all_scores_equal(key):
    """Minus zero among them; the first keys are the best ones."""
    key = key.to(DEVICE) * torch.tensor([-1.0, 1.0, -1.0, 1.0], device=DEVICE)
    _, indices = kernels.topk(torch.ones_like(key[:3]), key, 4, *options(3, 300, False))
    assert indices.tolist() == [[0, 1, 2, 3]] * 3


def test_nan_keys_are_never_found_and_nan_queries_find_nothing():
    query, key = integers(20, 8), integers(200, 8)
    key[::3, 2] = torch.nan
    query[7, 0] = torch.nan
    check(query, key, 5, options(20, 200, False))
    _, indices = kernels.topk(query, key, 5, *options(20, 200, False))
    assert (indices[7] == -1).all() and (indices[0] % 3 > 0).all()


def plan_tightly(monkeypatch, spare=0):
    """One part and buffers of a tile and k places, whatever the tiles; how wide those are."""

    def plan(M, N, k, tile, processors):
        tiles = -(-N // tile[1])
        return rounds.ScanPlan(M, 1, tile[1] + k + spare, 1, (1, 3, tiles), True)

    monkeypatch.setattr(rounds, "plan", plan)
    monkeypatch.setattr(rounds, "stride", lambda tiles: 1)
    arch, kind = configs.architecture(torch.device(DEVICE)), configs.kind(torch.float32)
    return configs.candidates(arch, "topk", kind, 16)[0].BLOCK_N


@pytest.mark.parametrize("everything", [False, True])
def test_a_full_buffer_is_tightened(monkeypatch, everything):
    """Later rounds are better in every tile, so that a small buffer overflows again and again."""
    M, N, k = 20, 20 * plan_tightly(monkeypatch), 3
    query, key = integers(M, 4, most=1), integers(N, 4, most=1)
    query[:, 0], key[:, 0] = 4.0, torch.arange(N, device=DEVICE) // 2
    if everything:
        key[:, 0] *= -1.0  # factors are negative
    *chosen, pairs = options(M, N, everything)
    check(query, key, k, (*chosen, pairs._replace(below=None, above=None)))


def test_a_plan_that_overruns_its_buffers_is_refused(monkeypatch):
    N = 20 * plan_tightly(monkeypatch, spare=-1)
    with pytest.raises(
        ValueError, match=r"capacity: expected at least \d+ places .* and k = 3, got"
    ):
        kernels.topk(integers(20, 4), integers(N, 4), 3, *options(20, N, False))
    fits = rounds.ScanPlan(20, 2, 32, 1, (4, 20), False)  # two tiles, then eight, of each part
    with pytest.raises(ValueError, match="expected at least 128 places"):
        fits.check(3, 16)
    fits._replace(capacity=128).check(3, 16)


def test_a_first_round_that_finds_fewer_than_k():
    M, N, k = 20, 600, 40
    alike = Pairs((ids(M, 12),), (ids(N, 12),), (True,))
    check(integers(M, 8), integers(N, 8), k, (None, None, None, None, alike))


def test_more_columns_than_are_searched_at_a_time(monkeypatch):
    monkeypatch.setattr(configs, "candidates", lambda *_: [configs.Config(32, 128, 0, 4, 1)])
    check(integers(40, 16), integers(700, 16), 6, options(40, 700))


@pytest.mark.parametrize("workspace", [10**7, 60_000, 2_000])
@pytest.mark.parametrize("scan_k", [1000, 0])
def test_waves_and_rounds(monkeypatch, workspace, scan_k):
    """With bounds and, for ``scan_k`` 0, with all pairs stored."""
    monkeypatch.setattr(rounds, "WORKSPACE", workspace)
    monkeypatch.setattr(rounds, "SCAN_K", scan_k)
    monkeypatch.setattr(rounds, "STORED_KEYS", 16)
    M, N, k = (40, 200, 12) if workspace > 10_000 else (5, 200, 12)
    check(integers(M, 8), integers(N, 8), k, options(M, N))


@pytest.mark.parametrize("largest", [True, False])
def test_public_call(largest):
    query, key = integers(30, 12), integers(200, 12)
    where = PairFilter(ids(30), ids(200), "different")
    calls = {
        backend: topk(
            query, key, 4, largest=largest, normalize=False, where=where,
            exclude=torch.arange(30, device=DEVICE), above=-20.0, backend=backend,
        )
        for backend in ("triton", "reference")
    }  # fmt: skip
    assert all(map(torch.equal, calls["triton"], calls["reference"]))


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter's BLAS rounds by place in a tile")
def test_rows_do_not_depend_on_their_batch():
    query, key = torch.randn(40, 24, device=DEVICE), torch.randn(300, 24, device=DEVICE)
    values, indices = kernels.topk(query, key, 6, *options(40, 300, False))
    some = kernels.topk(query[7:12].contiguous(), key, 6, *options(5, 300, False))
    assert torch.equal(values[7:12], some[0]) and torch.equal(indices[7:12], some[1])


def test_extreme_scores():
    """From infinity down, each score twice; -inf is no score."""
    scores = [-torch.inf, -3e38, -1.0, -0.0, 0.0, 1.0, 3e38, torch.inf]
    key = torch.tensor(scores * 2, device=DEVICE)[:, None].repeat_interleave(9, 0)
    values, indices = kernels.topk(key.new_ones(2, 1), key, 144, *options(2, 144, False))
    assert values[0, :126].unique_consecutive(return_counts=True)[1].tolist() == [
        18,
        18,
        18,
        36,
        18,
        18,
    ]
    assert (values[:, 126:] == -torch.inf).all() and (indices[:, 126:] == -1).all()
    assert torch.equal(values[0, :126], key[indices[0, :126], 0])


@pytest.mark.parametrize("k", [1, 10, 100, 1000, 4096, 100_000])
@pytest.mark.parametrize(("M", "N"), [(16384, 100_000), (1000, 10**6), (1, 10**6), (10**6, 300)])
def test_plans_fit_the_workspace(monkeypatch, M, N, k):
    monkeypatch.undo()
    plan = rounds.plan(M, N, k, (128, 128), 132)
    tiles = -(-N // 128)
    assert plan.rows * (8 * plan.buffers * plan.capacity + 12 * k) <= 64e6
    assert plan.ends[-1] == tiles and list(plan.ends) == sorted(set(plan.ends))
    assert plan.rows == M or plan.rows % 128 == 0 or plan.rows < 128
    plan.check(k, 128)
    if len(plan.ends) > 1:
        assert plan.carried * plan.capacity >= k


def test_a_stride_visits_every_tile():
    for tiles in (1, 2, 3, 12, 100, 7813):
        step = rounds.stride(tiles)
        assert len({v * step % tiles for v in range(tiles)}) == tiles
        assert step <= max(1, tiles)
