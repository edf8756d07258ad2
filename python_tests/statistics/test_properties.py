"""Random shapes, dtypes, filters, temperatures and graphs against the float64 truth."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cl_kernels
from catalogue import textbook
from cl_kernels import PairFilter
from python_tests.helpers import (
    LOSSES,
    PRIMITIVES,
    assert_frobenius,
    check_primitive,
    embeddings,
    leaf,
)

SIZES = st.one_of(st.integers(0, 70), st.sampled_from([127, 128, 129, 256, 257, 300, 515]))
WIDTHS = st.one_of(st.integers(1, 20), st.sampled_from([31, 64, 100, 257]))
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
TEMPERATURES = st.builds(
    lambda exponent, sign: sign * 10.0**exponent,
    st.floats(-2.3, 0.7, allow_nan=False),
    st.sampled_from([1, -1]),
)
TRAINED = st.sets(st.sampled_from(["query", "key", "scale"])).map(" ".join)
backends = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def pair_filters(draw, M, N):
    """None, one or two filters of few or many classes, some of them the same vector twice."""
    result = []
    for _ in range(draw(st.integers(0, 2))):
        classes = draw(st.sampled_from([1, 2, 7, 10_000]))
        offset = draw(st.sampled_from([0, -3, 2**62]))
        query_ids = torch.randint(0, classes, (M,)) + offset
        shared = M == N and draw(st.booleans())
        key_ids = query_ids if shared else torch.randint(0, classes, (N,)) + offset
        result.append(PairFilter(query_ids, key_ids, draw(st.sampled_from(["same", "different"]))))
    return tuple(result)


@backends
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_primitives(backend, data, seed):
    torch.manual_seed(seed)
    primitive = data.draw(st.sampled_from(PRIMITIVES))
    M, N, D = data.draw(SIZES), data.draw(SIZES), data.draw(WIDTHS)
    if primitive == "self_logsumexp":
        N = M
    dtype = data.draw(DTYPES)
    query, key = embeddings(M, N, D, dtype, peaked=data.draw(st.booleans()))
    if data.draw(st.booleans()):
        query, key = query.T.contiguous().T, key.repeat(1, 2)[:, :D]
    check_primitive(
        primitive,
        query,
        key,
        1 / data.draw(TEMPERATURES),
        trained=data.draw(TRAINED),
        where=data.draw(pair_filters(M, N)),
        backend=backend,
    )


@backends
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_losses(backend, data, seed):
    """In float64, where losses and gradients must agree to rounding whatever is combined."""
    torch.manual_seed(seed)
    loss = data.draw(st.sampled_from(["nt_xent", "info_nce", "clip"]))
    B, D, K = (
        data.draw(st.integers(1, 40)),
        data.draw(st.integers(2, 20)),
        data.draw(st.integers(0, 9)),
    )
    options = {"normalize": data.draw(st.booleans())}
    options["reduction"] = data.draw(st.sampled_from(["mean", "sum", "none"]))
    temperature = data.draw(TEMPERATURES)
    options[LOSSES[loss].scale] = LOSSES[loss].argument(1 / temperature)
    queue = torch.randn(K, D, dtype=torch.float64)
    if loss == "nt_xent":
        options["where"] = data.draw(pair_filters(2 * B, 2 * B))[:1]
        if data.draw(st.booleans()):
            options["negative_keys"] = queue
    if loss == "info_nce":
        kind = data.draw(st.sampled_from(["none", "shared", "own"]))
        if kind != "none":
            own = torch.randn(B, K, D, dtype=torch.float64)
            options["negative_keys"] = queue if kind == "shared" else own
            options["in_batch_negatives"] = data.draw(st.booleans())
        if kind == "none" or options["in_batch_negatives"]:
            options["where"] = data.draw(pair_filters(B, B))[:1]
        if data.draw(st.booleans()):
            options["target"] = torch.randint(0, B, (B,))
    first, second = torch.randn(2, B, D, dtype=torch.float64)
    upstream = torch.randn(2 * B)[: 2 * B if loss == "nt_xent" else B].double()
    outcomes = []
    for module, more in ((cl_kernels, {"backend": backend}), (textbook, {})):
        leaves = leaf(first, True), leaf(second, True)
        value = getattr(module, loss)(*leaves, **options, **more)
        total = (value * upstream).sum() if value.dim() else value
        outcomes.append((value.detach(), *torch.autograd.grad(total, leaves)))
    size = max(1, abs(1 / temperature)) * (1 if options["normalize"] else D)
    (ours, *grads), (truth, *expected) = outcomes
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-13 * size * max(1, B))
    for a, b in zip(grads, expected, strict=True):
        if b.norm() > 1e-9 * size:  # else nothing but rounding
            assert_frobenius(a, b, 1e-9)
