"""How the operations meet torch: schemas, fakes, autograd and torch.compile."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import cl_kernels
from cl_kernels import ClipLoss, InfoNCELoss, NTXentLoss, PairFilter
from cl_kernels._ops import overload, schemas
from cl_kernels.backends.packed import select_topk
from cl_kernels.calls import Call
from cl_kernels.losses.epilogues import EPILOGUES
from cl_kernels.pairs import Pairs, as_pairs
from cl_kernels.statistics.table import STATISTICS
from python_tests.helpers import (
    PRIMITIVES,
    accumulator,
    assert_own_memory,
    embeddings,
    filters,
    leaf,
    operator,
    some_options,
    statistics,
    unit_rows,
)

each_primitive = pytest.mark.parametrize("primitive", PRIMITIVES)


STATISTIC_OPERATIONS = [name for name in schemas if name.startswith(tuple(STATISTICS))]
LOSS_OPERATIONS = ["contrast", "contrast_backward"]


def call_arguments(kind, M, N, dtype):
    """The tail of a statistic's schema: with a bound of logits, or with every option."""
    if kind == "none":
        return Call(Pairs(), dtype, 1.0).arguments
    options = some_options(("below", "above", "query_bias", "key_bias", "guide"), M, N, dtype)
    guide = dict(zip(("query_guide", "key_guide", "ceiling"), options.pop("guide"), strict=True))
    return Call(as_pairs(filters(kind, M, N), **options, **guide), dtype, None).arguments


def operation_arguments(operation, kind, dtype, needs=(True, True)):
    """Positional arguments of a statistic's operation, on tensors that need no gradient."""
    of_one = operation.startswith("self")
    M, N = (7, 7) if of_one else (7, 9)
    query, key = embeddings(M, N, 5, dtype)
    of_rows, of_cols = (torch.randn(n, dtype=accumulator(dtype)) for n in (M, N))
    scale = torch.tensor(2.0, dtype=accumulator(dtype))
    arguments = query, None if of_one else key, scale, *call_arguments(kind, M, N, dtype)
    if not operation.endswith("backward"):
        return arguments
    biases = needs if kind != "none" else (False, False)
    needs = (True, False, *biases) if of_one else (*needs, *biases)
    sides = (of_rows, of_cols) if operation.startswith("row_col") else (of_rows,)
    return [list(sides), [x + 3 for x in sides], *arguments, list(needs)]


def loss_arguments(operation, dtype, reduction="mean"):
    """All that the operations of losses may be asked for."""
    query, key = embeddings(7, 7, 5, dtype)
    queue, own, counted = unit_rows(4, 5, dtype), unit_rows(14, 5, dtype), torch.rand(7, 2) < 0.7
    scale = torch.tensor(2.0, dtype=accumulator(dtype))
    for statistic, epilogue in itertools.product(STATISTICS, EPILOGUES):
        rows = 14 if statistic.startswith("self") else 7
        biases = some_options(("query_bias", "key_bias"), rows, rows, dtype)
        batch = Call(Pairs(**biases), dtype, None).arguments
        one = Call(Pairs(query_bias=biases["query_bias"].mean()), dtype, None).arguments
        for needs in itertools.product([True, False], repeat=4):
            negative_keys = queue if needs[2] and not statistic.startswith("row_col") else None
            needs = [*needs[:2], negative_keys is not None, needs[3], *needs[:2]]
            forms = [(negative_keys, None, batch, True)]
            if not needs[5]:
                forms += [(negative_keys, None, one, True)]
            if negative_keys is not None and statistic == "row_logsumexp":
                alone = Call(Pairs(query_bias=biases["query_bias"]), dtype, None).arguments
                forms += [(queue, None, alone, False), (own, counted, alone, False)]
                forms += [(own, counted, batch, True)]
            for keys, of_each, call, in_batch in forms:
                wanted = [*needs[:5], needs[5] and in_batch]
                margin = torch.randn(3, 1 if call is one else 7, dtype=scale.dtype)
                inputs = [query, key, keys, of_each, margin, scale, *call, statistic, epilogue]
                inputs += [True, in_batch]
                if operation == "contrast":
                    yield [*inputs, reduction, wanted]
                else:
                    grad = torch.randn(rows, dtype=scale.dtype)
                    sides = STATISTICS[statistic].directions + 1
                    yield [grad, torch.randn(sides, 7, dtype=scale.dtype), *inputs, wanted]


@pytest.mark.parametrize("operation", STATISTIC_OPERATIONS)
@pytest.mark.parametrize("kind", ["none", "not me, same"])
def test_opcheck(backend, operation, kind):
    cases = [(torch.float32, (True, True))]
    if "logsumexp" in operation and kind != "none":  # the same code serves all: a check takes long
        cases += [(torch.bfloat16, (True, True))]
        if operation.endswith("backward"):
            cases += [(torch.float32, n) for n in ((False, True), (True, False), (False, False))]
    for dtype, needs in cases:
        arguments = operation_arguments(operation, kind, dtype, needs)
        torch.library.opcheck(operator(operation, backend), arguments)


@pytest.mark.parametrize("operation", LOSS_OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck_losses(backend, operation, dtype):
    step = 41 if dtype == torch.float32 else 203  # a check takes long
    for arguments in itertools.islice(loss_arguments(operation, dtype), 0, None, step):
        torch.library.opcheck(operator(operation, backend), arguments)


@pytest.mark.parametrize("operation", STATISTIC_OPERATIONS)
@pytest.mark.parametrize("needs", list(itertools.product([True, False], repeat=2)), ids=str)
def test_results_have_memory_of_their_own(backend, operation, needs):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        arguments = operation_arguments(operation, "none", dtype, needs)
        assert_own_memory(overload(operation, backend)(*arguments), arguments)
        empty = tree_map(lambda x: x[:0] if torch.is_tensor(x) and x.dim() else x, arguments)
        assert_own_memory(overload(operation, backend)(*empty), empty)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_have_memory_of_their_own(backend, reduction):
    for arguments in loss_arguments("contrast", torch.float32, reduction):
        assert_own_memory(overload("contrast", backend)(*arguments), arguments)
    for arguments in loss_arguments("contrast_backward", torch.float32):
        assert_own_memory(overload("contrast_backward", backend)(*arguments), arguments)


@pytest.mark.parametrize("k", [2, 20])
def test_found_pairs_have_memory_of_their_own(backend, k):
    for M, N in itertools.product([0, 5], [0, 9]):
        query, key = torch.randn(M, 4), torch.randn(N, 4)
        arguments = query, key, k, None, None, None, None, *Pairs()
        assert_own_memory(overload("topk", backend)(*arguments), arguments)


@pytest.mark.parametrize("k", [2, 20])
def test_selected_pairs_have_memory_of_their_own(k):
    packed, counts = torch.randint(9, (5, 2, 3)), torch.full((5, 2), 3, dtype=torch.int32)
    for select in (torch.ops.cl_kernels.select_topk, select_topk):
        assert_own_memory(select(packed, counts, k), (packed, counts))


@pytest.mark.parametrize("operation", [o for o in STATISTIC_OPERATIONS if "backward" in o])
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_gradients_not_needed_are_empty(backend, operation, needs):
    if operation.startswith("self"):
        pytest.skip("its one gradient is always needed")
    results = overload(operation, backend)(
        *operation_arguments(operation, "not me, same", torch.float32, needs)
    )
    shapes = [list(r.shape) for r in results]
    query, key = ([7, 5] if needs[0] else [0]), ([9, 5] if needs[1] else [0])
    assert shapes == [query, key, [], query[:1], key[:1]]


@each_primitive
@pytest.mark.parametrize("kind", ["none", "not me, same", "different"])
def test_gradcheck_primitives(backend, primitive, kind):
    M, N = (6, 6) if primitive == "self_logsumexp" else (6, 5)
    query, key = (leaf(x, True) for x in embeddings(M, N, 4, torch.float64))
    scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    where = filters(kind, M, N)

    def f(query, key, scale):
        results = statistics(primitive, query, key, scale, where=where, backend=backend)
        return tuple(r.masked_fill(r == -torch.inf, 0) for r in results)

    assert torch.autograd.gradcheck(f, (query, key, scale))
    assert torch.autograd.gradcheck(lambda q: f(q, key.detach(), scale.detach()), (query,))


def losses(backend):
    """Each loss as a function of two views and a third tensor, with a learned temperature."""
    own = torch.randn(6, 3, 4, dtype=torch.float64)
    where = PairFilter(torch.arange(6) % 3, torch.arange(6) % 3, "different")
    return {
        "nt_xent": lambda a, b, t: cl_kernels.nt_xent(a, b, t, backend=backend),
        "nt_xent queue": lambda a, b, t: cl_kernels.nt_xent(
            a, b, t, negative_keys=own[0].to(a.dtype), backend=backend
        ),
        "info_nce": lambda a, b, t: cl_kernels.info_nce(
            a, b, temperature=t, where=where, backend=backend
        ),
        "info_nce own": lambda a, b, t: cl_kernels.info_nce(
            a, b, own.to(a.dtype), temperature=t, in_batch_negatives=True, backend=backend
        ),
        "clip": lambda a, b, t: cl_kernels.clip(a, b, 1 / t, backend=backend),
    }


LOSSES = ("nt_xent", "nt_xent queue", "info_nce", "info_nce own", "clip")


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck_losses(backend, loss):
    inputs = [torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(losses(backend)[loss], (*inputs, temperature))


@each_primitive
@pytest.mark.parametrize("trained", ["query", "query key"])
def test_double_backward_of_primitives_is_refused(backend, primitive, trained):
    query, key = embeddings(5, 5, 4)
    query, key = leaf(query, True), leaf(key, "key" in trained)
    results = statistics(primitive, query, key, 2.0, backend=backend)
    with pytest.raises(RuntimeError, match=r"double backward.*not supported"):
        torch.autograd.grad(results[0].sum(), query, create_graph=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_double_backward_of_losses_is_refused(backend, loss):
    a, b = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    value = losses(backend)[loss](a, b, 0.5)
    with pytest.raises(RuntimeError, match=r"double backward.*not supported"):
        torch.autograd.grad(value, a, create_graph=True)


def test_no_graph_without_a_need(backend):
    query, key = embeddings(5, 5, 4)
    for primitive in PRIMITIVES:
        assert not any(r.requires_grad for r in statistics(primitive, query, key, 2.0))
        with torch.no_grad():
            trained = leaf(query, True), leaf(key, True)
            assert not any(r.requires_grad for r in statistics(primitive, *trained, 2.0))


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same_compiled(f, arguments, compiler, dynamic=None):
    """Values and gradients, compiled and eager, must agree."""
    compiled = torch.compile(f, fullgraph=True, backend=compiler, dynamic=dynamic)
    outcomes = []
    for g in (f, compiled):
        leaves = [leaf(x, True) for x in arguments]
        value = g(*leaves)
        outcomes.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for eager, ours in zip(*outcomes, strict=True):
        assert eager.dtype == ours.dtype
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)


def compiled_nt_xent(backend, dynamic=None):
    def f(a, b, temperature):
        return cl_kernels.nt_xent(a, b, temperature, backend=backend)

    return torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=dynamic)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["chunked", "native"], indirect=True)
class TestCompile:
    @each_primitive
    @pytest.mark.parametrize("kind", ["none", "not me, same"])
    def test_primitives(self, backend, primitive, kind):
        where = filters(kind, 12, 12)

        def f(query, key, scale):
            results = statistics(primitive, query, key, scale, where=where, backend=backend)
            total = sum(r.masked_fill(r == -torch.inf, 0).square().sum() for r in results)
            return total + 0 * key.sum()

        same_compiled(f, (*embeddings(12, 12, 8), torch.tensor(3.0)), "aot_eager")

    @pytest.mark.parametrize("loss", LOSSES)
    def test_losses(self, backend, loss):
        arguments = *(torch.randn(6, 4) for _ in range(2)), torch.tensor(0.4)
        same_compiled(losses(backend)[loss], arguments, "aot_eager")

    @pytest.mark.parametrize("loss", LOSSES)
    def test_losses_without_gradients(self, backend, loss):
        """As in a validation step: nothing requires grad."""
        arguments = *(torch.randn(6, 4) for _ in range(2)), torch.tensor(0.4)
        f = losses(backend)[loss]
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), f(*arguments))

    def test_modules(self, backend):
        first, second = torch.randn(2, 6, 4)
        temperature = nn.Parameter(torch.tensor(0.4))
        for module in (NTXentLoss(temperature, backend=backend), InfoNCELoss(backend=backend)):
            same_compiled(module, (first, second), "aot_eager")
        clip = ClipLoss(backend=backend)
        same_compiled(lambda a, b: clip(a, b, 3.0), (first, second), "aot_eager")

    def test_half_types_and_autocast(self, backend):
        first, second = torch.randn(2, 6, 4)

        def mixed(a, b):
            with torch.autocast("cpu", torch.bfloat16):
                return cl_kernels.nt_xent(a, b, backend=backend)

        same_compiled(mixed, (first, second), "aot_eager")
        half = first.bfloat16(), second.bfloat16()
        same_compiled(lambda a, b: cl_kernels.clip(a, b, 3.0, backend=backend), half, "aot_eager")

    def test_dynamic_shapes(self, backend):
        compiled = compiled_nt_xent(backend, dynamic=True)
        for rows in (6, 9, 14):
            views = torch.randn(2, rows, 4).requires_grad_()
            expected = cl_kernels.nt_xent(*views, 0.5, backend=backend)
            torch.testing.assert_close(compiled(*views, 0.5), expected)

    def test_a_temperature_that_changes_from_call_to_call(self, backend):
        """At the second float torch.compile makes it an input of the graph."""
        compiled, views = compiled_nt_xent(backend), torch.randn(2, 6, 4).requires_grad_()
        for temperature in (0.5, 0.3, 0.2):
            expected = cl_kernels.nt_xent(*views, temperature, backend=backend)
            torch.testing.assert_close(compiled(*views, temperature), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor():
    def model(a, b, t):
        return 2 * cl_kernels.nt_xent(a.tanh(), b * 2, t)

    same_compiled(model, (*torch.randn(2, 20, 8), torch.tensor(0.4)), "inductor")


def test_fakes_have_the_real_shapes_and_dtypes(backend):
    """Tracing in a fake mode gives what running gives, without computing anything."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for primitive, dtype in itertools.product(PRIMITIVES, (torch.float16, torch.float64)):
        real = statistics(primitive, *embeddings(6, 8, 4, dtype), 2.0, backend=backend)
        with FakeTensorMode():
            query, key = torch.empty(6, 4, dtype=dtype), torch.empty(8, 4, dtype=dtype)
            fake = statistics(primitive, query, key, 2.0, backend=backend)
        assert [(r.shape, r.dtype) for r in real] == [(r.shape, r.dtype) for r in fake]


def test_backward_runs_on_the_forwards_backend(backend, monkeypatch):
    query, key = (leaf(x, True) for x in (unit_rows(5, 4), unit_rows(6, 4)))
    with cl_kernels.use_backend(backend):
        results = [statistics(primitive, query, key, 2.0) for primitive in PRIMITIVES]
    seen = []
    from cl_kernels.statistics import operations

    def spy(operation, name):
        seen.append(name)
        return overload(operation, name)

    monkeypatch.setattr(operations, "overload", spy)
    with cl_kernels.use_backend("reference" if backend != "reference" else "chunked"):
        for result in results:
            sum(r.sum() for r in result).backward()
    assert seen == [backend] * 3


def test_double_backward_is_refused_where_no_statistic_is_streamed():
    query, key = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    value = cl_kernels.info_nce(query, key, torch.randn(5, 3, 4))
    with pytest.raises(RuntimeError, match=r"double backward.*not supported"):
        torch.autograd.grad(value, query, create_graph=True)
