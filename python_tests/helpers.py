"""What the tests share: inputs, one way to call every primitive, and the accuracy rule."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import cl_kernels
from catalogue import textbook
from catalogue.losses import LOSSES
from cl_kernels import PairFilter, _dispatch
from cl_kernels._dispatch import Request
from cl_kernels.statistics.table import STATISTICS

PRIMITIVES = tuple(name for name in STATISTICS if name.endswith("logsumexp"))
SUMS = tuple(name for name in STATISTICS if name.endswith("sum"))
TEMPERATURES = (0.005, 0.02, 0.07, 0.5, 1.0, -0.005, -0.07, -1.0)

# Values: see assert_values. Gradients: Frobenius norm of the error relative to the truth's.
VALUE = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 3e-7) | {torch.float64: 1e-15}
GRADIENT = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 4e-3,
}


def a_request(device="cpu", dtype=torch.float32, operation="row_logsumexp", width=8, **more):
    """A call that a backend may be asked to serve."""
    return Request(operation, torch.device(device), dtype, dtype, width, **more)


def forget_backends(monkeypatch):
    """As if none was asked yet what it serves."""
    for known in ("_usable", "_chosen"):
        monkeypatch.setattr(_dispatch, known, {})


def operator(operation, backend):
    """An operation as one backend computes it, as torch knows it."""
    return getattr(getattr(torch.ops.cl_kernels, operation), backend)


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_rows(rows, width, dtype=torch.float32):
    return F.normalize(torch.randn(rows, width, dtype=torch.float64), dim=1).to(dtype)


def embeddings(M, N, D, dtype=torch.float32, *, peaked=False):
    """Unit queries and keys; half of the queries find their twin among the keys if peaked."""
    query, key = unit_rows(M, D, dtype), unit_rows(N, D, dtype)
    if peaked:
        twins = (min(M, N) + 1) // 2
        key[:twins] = query[:twins]
    return query, key


def views(rows, width=24, dtype=torch.float32, *, noise=0.5):
    """Two views of each image, related but not of unit length."""
    first = torch.randn(rows, width, dtype=torch.float64)
    second = first + noise * torch.randn(rows, width, dtype=torch.float64)
    return (3 * first).to(dtype), second.to(dtype)


def filters(kind, M, N):
    """Filters by name; several ids meet several times, and some meet no partner."""
    labels_q, labels_k = torch.randint(0, 5, (M,)), torch.randint(0, 6, (N,))
    index_q, index_k = torch.arange(M), torch.arange(N)
    same = PairFilter(labels_q, labels_k, "same")
    different = PairFilter(labels_q, labels_k, "different")
    not_me = PairFilter(index_q, index_k, "different")
    hashes = PairFilter((labels_q - 3) * 2**61, (labels_k - 3) * 2**61, "different")
    return {
        "none": (),
        "same": (same,),
        "different": (different,),
        "not me": (not_me,),
        "not me, same": (not_me, same),
        "different, hashes": (different, hashes),
        "three": (not_me, different, hashes),
        "nothing left": (same, different),
    }[kind]


FILTERS = (
    "same",
    "different",
    "not me",
    "not me, same",
    "different, hashes",
    "three",
    "nothing left",
)


def statistics(primitive, query, key, scale, **options):
    """The primitive's results as a flat tuple; those of one set have no use for the keys."""
    inputs = (query,) if STATISTICS[primitive].of_one else (query, key)
    return tuple(tree_leaves(getattr(cl_kernels, primitive)(*inputs, scale, **options)))


def call_loss(loss, first, second, scale, form="ours", **options):
    """One form of a loss by name; rows are normalized unless told otherwise."""
    case = LOSSES[loss]
    return case.call(getattr(case, form), first, second, scale, **options)


def leaf(x, trained, dtype=None):
    return x.detach().to(dtype or x.dtype).requires_grad_(trained)


def upstream_like(results):
    """Non-uniform upstream gradients of both signs."""
    return [torch.randn_like(x) for x in results]


def gradients(results, upstream, leaves):
    """Gradients of the leaves that are trained; None for the others."""
    trained = [x for x in leaves if x.requires_grad]
    given = iter(torch.autograd.grad(results, trained, upstream, allow_unused=True))
    return [next(given) if x.requires_grad else None for x in leaves]


def some_options(names, M, N, dtype=torch.float32):
    """Options of the statistics by name, in the accumulation type, and in float64."""
    generator = torch.Generator().manual_seed(7)

    def some(*size):
        return torch.randn(size, generator=generator, dtype=accumulator(dtype))

    options = {
        "below": 0.2 + 0.5 * some(M).abs(),
        "above": -0.2 - 0.5 * some(M).abs(),
        "query_bias": 3 * some(M),
        "key_bias": 3 * some(N),
        "guide": (some(M, 6), some(N, 6), some(M)),
        "normalize": True,
    }
    return {name: options[name] for name in names}


def check_primitive(
    primitive, query, key, scale, *, trained="query key scale", rule=None, options=None, **more
):
    """Holds values and gradients of one call against the textbook under the accuracy rule.

    The truth is taken in float64 on the inputs as the tile products see them: rounded to ``rule``
    (the dtype of the products, by default the embeddings' own), the scale to float32. ``options``
    are those that the textbook knows too; biases among them are trained.
    """
    rule = rule or query.dtype
    where = more.pop("where", ())
    scale = torch.as_tensor(scale, dtype=accumulator(query.dtype))
    inputs = {"query": query, "key": key, "scale": scale}
    if STATISTICS[primitive].of_one:
        del inputs["key"]
    options = options or {}
    biases = {name: options[name] for name in ("query_bias", "key_bias") if name in options}

    ours = {name: leaf(x, name in trained) for name, x in inputs.items()}
    ours |= {name: leaf(x, True) for name, x in biases.items()}
    results = statistics(
        primitive, ours["query"], ours.get("key"), ours["scale"], where=where,
        **(options | {name: ours[name] for name in biases}), **more,
    )  # fmt: skip
    exact = {
        name: leaf(x if name == "scale" else x.to(rule), name in trained, torch.float64)
        for name, x in inputs.items()
    }
    exact |= {name: leaf(x, True, torch.float64) for name, x in biases.items()}
    in_double = tree_map(lambda x: x.double() if torch.is_tensor(x) else x, options)
    truth, logits = textbook.statistics(
        primitive, exact["query"], exact.get("key"), exact["scale"], where,
        **(in_double | {name: exact[name] for name in biases}),
    )  # fmt: skip
    # The rule speaks of unit vectors; |scale| stands for the size of the logits.
    size = max(abs(scale.item()), float(logits.detach().abs().amax())) if logits.numel() else 0.0

    for result, expected in zip(results, truth, strict=True):
        if not expected.is_floating_point():
            assert torch.equal(result, expected)
            continue
        assert result.dtype == scale.dtype
        assert_values(result.detach(), expected.detach(), query.dtype, size)
    results, truth = ([x for x in xs if x.is_floating_point()] for xs in (results, truth))
    if not any(x.requires_grad for x in ours.values()):
        return
    upstream = upstream_like(results)
    grads = dict(zip(ours, gradients(results, upstream, ours.values()), strict=True))
    upstream = [g.double() for g in upstream]
    *expected, weights = gradients(truth, upstream, [*exact.values(), logits])
    expected = dict(zip(exact, expected, strict=True))
    tolerance = GRADIENT[rule] * (max(1, size / 100) if rule.itemsize >= 4 else 1)
    for name in ("query", "key", *biases):
        if expected.get(name) is not None:
            assert grads[name].dtype == ours[name].dtype
            assert_frobenius(grads[name], expected[name], tolerance, name)
    if expected["scale"] is not None:
        # One number may cancel to nothing: its error counts relative to what was added up.
        similarity = exact["query"].detach() @ exact.get("key", exact["query"]).detach().T
        total = (weights * similarity).abs().sum()
        error = (grads["scale"].double() - expected["scale"]).abs()
        assert error <= tolerance * total, f"scale: {error / total:.2e} > {tolerance:.2e}"


def assert_values(ours, truth, dtype, size):
    """The rule for values, and a stricter one where the rule is loose; -inf where the truth is.

    ``3e-7 max(1, size)`` relative to the value allows more and more digits to go as logits grow.
    A sum of rounded products does not need that: eight roundings of the largest logit do.
    """
    assert torch.equal(ours == -torch.inf, truth == -torch.inf)
    some = truth != -torch.inf
    ours, truth = ours[some].double(), truth[some]
    size = max(1.0, size)
    ruled = VALUE[dtype] * size * truth.abs().clamp_min(1)  # near zero no relative error exists
    allowed = ruled.minimum(8 * torch.finfo(accumulator(dtype)).eps * truth.abs().clamp_min(size))
    worst = ((ours - truth).abs() / allowed).max() if len(truth) else 0
    assert worst <= 1, f"value: {worst:.2f} times the allowed error"


def assert_own_memory(results, arguments):
    """As torch asks of an operation: no result shares memory with another or with an argument."""
    results = tree_leaves(results)
    given = {x.untyped_storage()._cdata for x in tree_leaves(arguments) if isinstance(x, Tensor)}
    own = {x.untyped_storage()._cdata for x in results}
    assert len(own - given) == len(results)


def frobenius(ours, truth):
    """``|ours - truth| / |truth|``, 0 for 0 / 0."""
    error = (ours.detach().double() - truth.detach().double()).norm()
    return float(error / truth.detach().double().norm()) if error != 0 else 0.0


def assert_frobenius(ours, truth, tolerance, name="gradient"):
    assert ours.shape == truth.shape
    truth = truth.detach()
    error, size = (ours.double() - truth).norm(), truth.norm()
    # Below 6e-5 float16 is evenly spaced: its rounding, half a step, is not relative there.
    step = torch.finfo(torch.float16).smallest_normal / 1024 if ours.dtype == torch.float16 else 0
    allowed = tolerance * size + step / 2 * ours.numel() ** 0.5
    assert error <= allowed, f"{name}: {error / size:.2e} > {tolerance:.2e}"
