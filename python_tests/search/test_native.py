"""The C++ top-K: blocks, spans, threads and bits. What every backend must do: test_topk.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cl_kernels._ops import overload
from cl_kernels.backends.packed import select_topk as packed_selection
from cl_kernels.pairs import Pairs
from python_tests.conftest import skip_unless_usable
from python_tests.helpers import accumulator

ROOT = Path(__file__).parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
THREADS = (1, 2, 4)


@pytest.fixture(scope="module", autouse=True)
def native():
    skip_unless_usable("native")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def whole_numbers(rows, width, dtype=torch.float32):
    """Embeddings whose inner products are exact in every dtype, and full of ties."""
    return torch.randint(-2, 3, (rows, width)).to(dtype)


def search(
    query, key, k, *, factors=(None, None), filters=(), exclude=(None, None), below=None,
    above=None, backend="native",
):  # fmt: skip
    ids = [list(x) for x in zip(*filters, strict=True)] if filters else [[], [], []]
    return overload("topk", backend)(query, key, k, *factors, *exclude, *Pairs(*ids, below, above))


def assert_same_bits(ours, expected):
    for name, a, b in zip(("values", "indices"), ours, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name


def check(query, key, *ks, threads=(1, 4), **options):
    """The same bits as the dense reference: only for inputs whose scores are exact."""
    expected = search(query, key, max(ks), backend="reference", **options)
    for count in threads:
        torch.set_num_threads(count)
        for k in ks:
            found = search(query, key, k, **options)
            assert_same_bits(found, [x[:, :k] for x in expected])


# M, N: one row and one strip of keys; ragged ones; several spans; several blocks of rows.
SHAPES = [(1, 1), (2, 63), (5, 64), (49, 65), (3, 50), (1, 20000), (64, 3000), (600, 700)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(shape, dtype):
    M, N = shape
    for width in (1, 17, 32):
        query, key = whole_numbers(M, width, dtype), whole_numbers(N, width, dtype)
        check(query, key, 1, 10, min(N + 5, 300))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many(dtype):
    """Blocks of few rows; more than there are."""
    check(whole_numbers(100, 8, dtype), whole_numbers(5000, 8, dtype), 1000, 4096, 5500)


def test_no_width():
    check(torch.zeros(3, 0), torch.zeros(200, 0), 150)


def options_of_every_kind(M, N, dtype):
    """Factors of both signs that are powers of two, so that scores stay exact."""
    counts = torch.randint(0, 60, (M,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    lists = [torch.randint(0, N, (int(count),)).sort().values for count in counts]
    bounds = torch.tensor([-torch.inf, -2.0, 0.0, 3.0, 5.0, torch.inf, torch.nan], dtype=dtype)

    def some(values, count):
        values = torch.as_tensor(values)
        return values[torch.randint(len(values), (count,))]

    def labels(most):
        return torch.randint(-most, most, (M,)) << 40, torch.randint(-most, most, (N,)) << 40

    return {
        "factors": (
            some([-1.0, 0.5, 2.0], M).to(dtype),
            some([0.25, 1.0, 4.0], N).to(dtype),
        ),
        "filters": [(*labels(3), False), (*labels(2), True)],
        "exclude": (offsets, torch.cat(lists)),
        "below": some(bounds[1:], M).where(torch.rand(M) < 0.5, 5),
        "above": some(bounds[:-1], M).where(torch.rand(M) < 0.1, -4),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options(dtype):
    for M, N in ((40, 3000), (550, 300)):
        query, key = whole_numbers(M, 12, dtype), whole_numbers(N, 12, dtype)
        options = options_of_every_kind(M, N, accumulator(dtype))
        for names in (("exclude",), ("filters", "below"), ("factors", "above"), tuple(options)):
            check(query, key, 1, 25, 250, **{name: options[name] for name in names})


def test_labels_in_blocks():
    """Whole blocks that the labels drop, or keep, are not looked at pair by pair."""
    query, key = whole_numbers(600, 9), whole_numbers(1000, 9)
    of_query, of_key = torch.arange(600) // 70, torch.arange(1000) // 130
    for keep_same in (True, False):
        check(query, key, 150, filters=[(of_query, of_key, keep_same)])


def test_not_finite():
    query, key = whole_numbers(60, 16).abs() + 1, whole_numbers(1000, 16)
    query[[3, 50], 4] = torch.nan
    query[7, 0] = torch.inf
    key[[0, 64, 999], 1] = torch.nan
    key[100:140] = torch.inf
    key[200:240, 3] = -torch.inf
    check(query, key, 30, 1000)


@pytest.mark.parametrize("order", ["ascending", "descending", "all equal", "two scores"])
def test_ordered_corpora(order):
    """Every strip of an ascending corpus beats all before it; equal scores fall by index."""
    N = 10000
    rising = torch.arange(N)[:, None].float()
    key = {
        "ascending": rising,
        "descending": rising.flip(0),
        "all equal": torch.ones(N, 1),
        "two scores": (rising % 2),
    }[order]
    query = torch.tensor([[1.0], [-1.0], [0.0], [-0.0]]).repeat(10, 1)
    check(query, key, 1, 10, 500)


# Bits of scores that are not exact


@pytest.fixture(scope="module")
def rounded():
    torch.manual_seed(0)
    query, key = torch.randn(300, 100), torch.randn(2500, 100)
    key[1200:1300] = key[:100]  # ties must fall alike as well
    return query, key


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_batches(rounded, dtype):
    query, key = (x.to(dtype) for x in rounded)
    factors = tuple(1 / x.to(accumulator(dtype)).norm(dim=1) for x in (query, key))
    torch.set_num_threads(1)
    whole = search(query, key, 40, factors=factors)
    for threads in THREADS:
        torch.set_num_threads(threads)
        assert_same_bits(search(query, key, 40, factors=factors), whole)
        for rows in ([0], [299], [5, 17], range(7), range(64), range(99, 299)):
            rows = list(rows)
            part = search(query[rows], key, 40, factors=(factors[0][rows], factors[1]))
            assert_same_bits(part, [x[rows] for x in whole])


@pytest.mark.parametrize("shift", [1, 37, 64, 700])
def test_place_of_a_key(rounded, shift):
    """A score does not depend on where in the corpus its key is."""
    query, key = rounded
    whole = search(query, key, 20)
    shifted = torch.cat([torch.full((shift, key.shape[1]), torch.nan), key])
    values, indices = search(query, shifted, 20)
    assert_same_bits((values, indices - shift), whole)
    few = search(query, key[shift : shift + 50].contiguous(), 50)
    every = search(query, key, len(key))
    order = torch.argsort(every[1], dim=1)
    by_key = every[0].gather(1, order)[:, shift : shift + 50]
    assert torch.equal(by_key.gather(1, few[1]), few[0])


def test_close_to_float64(rounded):
    query, key = rounded
    values, indices = search(query, key, 40)
    exact = query.double() @ key.double().T
    expected = exact.topk(40).values
    allowed = 1e-6 * query.shape[1] ** 0.5 * exact.abs().max()
    assert (values - expected).abs().max() <= allowed
    assert (values - exact.gather(1, indices)).abs().max() <= allowed


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", ["avx2", "baseline"])
def test_lower_instruction_sets(instruction_set):
    """What hangs on it most. Memory from malloc comes filled with 3e38: see test_environments."""
    environment = {
        "CL_KERNELS_ISA": instruction_set,
        "GLIBC_TUNABLES": "glibc.malloc.perturb=128",
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TOP_PAD_": str(2**26),
    }
    tests = "threads or place or options and bfloat16"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    run = subprocess.run(
        [*command, "-k", tests, __file__],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-4000:]


# Memory

# As test_memory.py measures it. The matrix would take 160 MB.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from cl_kernels import topk

k, dtype = json.loads(sys.argv[1])
torch.set_num_threads(4)
query, key = (torch.randn(n, 32).to(getattr(torch, dtype)) for n in (2000, 20000))

def resident(field):
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if field + ":" in x]
    return int(line.split()[1]) * 1024

topk(query[:64], key[:640], k, backend="native")
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
found = topk(query, key, k, backend="native")
print(resident("VmHWM") - before - sum(x.nbytes for x in found))
"""


@pytest.mark.parametrize("k, dtype", [(10, "float32"), (1000, "float32"), (4096, "bfloat16")])
def test_memory(k, dtype):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no /proc/self/clear_refs")
    command = [sys.executable, "-c", PROGRAM, json.dumps([k, dtype])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 40 * 2**20


# Bad calls of the operation itself, and the selection


def test_k_must_be_positive():
    with pytest.raises(RuntimeError, match="k: expected at least 1, got 0"):
        search(torch.randn(2, 3), torch.randn(4, 3), 0)


def packed_survivors(M, P, C):
    """Packed pairs with ties and with garbage after the valid ones, and what they hold."""
    scores = torch.randint(-5, 6, (M, P, C)).float()
    indices = torch.stack([torch.randperm(P * C) for _ in range(M)]).view(M, P, C)
    bits = (scores + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    packed = (bits.long() << 32) | (0xFFFFFFFF - indices)
    counts = torch.randint(0, C + 1, (M, P), dtype=torch.int32)
    valid = torch.arange(C) < counts[..., None]
    return packed.where(valid, torch.iinfo(torch.int64).max), counts, scores, indices, valid


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 50), (300, 4, 40), (2, 1, 3000), (2, 9, 700)])
def test_select(shape):
    M, P, C = shape
    packed, counts, scores, indices, valid = packed_survivors(M, P, C)
    for k in (1, 10, 300, P * C + 2):
        ours = torch.ops.cl_kernels.select_topk(packed, counts, k)
        assert_same_bits(ours, packed_selection(packed, counts, k))
        for i in range(M):
            pairs = zip(scores[i][valid[i]].tolist(), indices[i][valid[i]].tolist(), strict=True)
            best = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:k]
            assert ours[1][i].tolist() == [j for _, j in best] + [-1] * (k - len(best))
            assert ours[0][i].tolist() == [s for s, _ in best] + [-torch.inf] * (k - len(best))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_select_from_nothing(shape):
    packed = torch.empty(shape, dtype=torch.int64)
    counts = torch.zeros(shape[:2], dtype=torch.int32)
    values, indices = torch.ops.cl_kernels.select_topk(packed, counts, 5)
    assert values.shape == indices.shape == (shape[0], 5)
    assert (values == -torch.inf).all() and (indices == -1).all()
