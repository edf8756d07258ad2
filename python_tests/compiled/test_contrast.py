"""The fused contrast of the compiled library against the composition on the reference backend."""

import itertools

import pytest
import torch
from torch.utils._pytree import tree_leaves

from cl_kernels._ops import overload
from cl_kernels.calls import Call
from cl_kernels.losses.composed import Needs
from cl_kernels.pairs import Pairs
from cl_kernels.statistics.table import STATISTICS
from python_tests.conftest import skip_unless_usable
from python_tests.helpers import accumulator

OF_FOLDS = {
    "logsumexp": ("softplus", "difference"),
    "softplus_sum": ("sigmoid",),
    "hinge_sum": ("difference",),
}
KINDS = [
    (name, epilogue, normalize, in_batch)
    for name, statistic in STATISTICS.items()
    for epilogue in OF_FOLDS[statistic.fold.name]
    for normalize in (True, False)
    for in_batch in ((True, False) if statistic.sides == "row" else (True,))
]
RULE = {torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float64: 1e-12}
each_kind = pytest.mark.parametrize(("statistic", "epilogue", "normalize", "in_batch"), KINDS)


@pytest.fixture(scope="module", autouse=True)
def native():
    skip_unless_usable("native")


def inputs(
    statistic, batch, width, dtype, further, filters=0, bounded=False, in_batch=True, one=False
):
    """Positional arguments before the kind of loss: related rows, which are not of unit length;
    ``one``: with one bias and one margin of all queries."""
    exact = accumulator(dtype)
    first = torch.randn(batch, width, dtype=exact)
    second = first + 0.5 * torch.randn(batch, width, dtype=exact)
    rows = 2 * batch if STATISTICS[statistic].of_one else batch
    keys = rows if in_batch else further
    query_ids, key_ids = (
        tuple(torch.randint(4, (n,)) for _ in range(filters)) for n in (rows, keys)
    )
    below = torch.rand(rows, dtype=exact) if bounded else None
    query_bias = torch.randn(() if one else rows, dtype=exact)
    biases = query_bias, torch.randn(rows, dtype=exact) if in_batch else None
    pairs = Pairs(query_ids, key_ids, (False,) * filters, below, None, *biases)
    negative_keys = None if further is None else torch.randn(further, width, dtype=exact).to(dtype)
    embeddings = (x.to(dtype) / width**0.5 for x in (first, second))
    scale = torch.tensor(3.0, dtype=exact)
    margin = torch.stack((torch.rand(batch), -torch.rand(batch), 1 + torch.rand(batch))).to(exact)
    margin = None if bounded else margin[:, :1].contiguous() if one else margin
    return *embeddings, negative_keys, None, margin, scale, *Call(pairs, dtype, None).arguments


def both(operation, *arguments):
    return (overload(operation, backend)(*arguments) for backend in ("native", "reference"))


def assert_close(ours, expected, dtype, size=1.0):
    for a, b in zip(tree_leaves(ours), tree_leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        atol = RULE[dtype] * max(b.abs().max().item() if b.numel() else 0, size)
        torch.testing.assert_close(a, b, rtol=RULE[dtype], atol=atol)


def all_needs(further, in_batch):
    return [True, True, further is not None, True, True, in_batch]


def every_need(further, in_batch):
    for needs in itertools.product([True, False], repeat=4):
        if further is not None or not needs[2]:
            yield [*needs, needs[0] != needs[3], needs[1] and in_batch]


def skip_impossible(statistic, further, in_batch):
    if further is not None and statistic.startswith("row_col"):
        pytest.skip("of both directions there are no further negatives")
    if further is None and not in_batch:
        pytest.skip("there would be no negatives at all")


def needed(statistic, every, of_every, needs):
    """Of the gradients ``every``, which ``of_every`` asked for, those that are needed."""
    views = STATISTICS[statistic].of_one
    gradients = dict(zip(Needs(*of_every).of(views, range(6)), every, strict=True))
    return [gradients[i] for i in Needs(*needs).of(views, range(6))]


@each_kind
@pytest.mark.parametrize("batch", [1, 5, 130])
@pytest.mark.parametrize("further", [None, 0, 77])
def test_contrast(statistic, epilogue, normalize, in_batch, batch, further):
    skip_impossible(statistic, further, in_batch)
    kind = statistic, epilogue, normalize, in_batch
    for dtype in RULE:
        given = inputs(statistic, batch, 24, dtype, further, filters=2, in_batch=in_batch)
        if statistic.endswith("logsumexp") and epilogue == "difference":  # of no negative: -inf
            biases = dict(zip(("query_bias", "key_bias"), given[11:13], strict=True))
            given = *given[:6], *Call(Pairs(**biases), dtype, None).arguments
        for reduction in ("mean", "sum", "none"):
            compared = both(
                "contrast", *given, *kind, reduction,
                all_needs(further, in_batch),
            )  # fmt: skip
            assert_close(*compared, dtype)
        of_every = all_needs(further, in_batch)
        loss, statistics, every = overload("contrast", "reference")(*given, *kind, "mean", of_every)
        for needs in every_need(further, in_batch):
            results = overload("contrast", "native")(*given, *kind, "mean", needs)
            expected = loss, statistics, needed(statistic, every, of_every, needs)
            assert_close(results, expected, dtype)


@each_kind
@pytest.mark.parametrize("further", [None, 40])
def test_gradients_of_each_loss(statistic, epilogue, normalize, in_batch, further):
    skip_impossible(statistic, further, in_batch)
    kind = statistic, epilogue, normalize, in_batch
    for dtype in RULE:
        given = inputs(statistic, 70, 33, dtype, further, in_batch=in_batch, one=further is None)
        of_every = all_needs(further, in_batch)
        losses, statistics, _ = overload("contrast", "reference")(*given, *kind, "none", of_every)
        grad = torch.randn_like(losses)
        arguments = grad, statistics, *given, *kind
        every = overload("contrast_backward", "reference")(*arguments, of_every)
        for needs in every_need(further, in_batch):
            results = overload("contrast_backward", "native")(*arguments, needs)
            expected = needed(statistic, every, of_every, needs)
            assert_close(results, expected, dtype, len(losses))


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("epilogue", ["softplus", "difference"])
@pytest.mark.parametrize("each", [0, 1, 6])
def test_own_keys(epilogue, in_batch, each):
    batch = 37
    counted = torch.rand(batch, each) < 0.7
    if epilogue == "difference":  # of no negative: -inf
        counted = torch.ones_like(counted)
    if epilogue == "difference" and each == 0 and not in_batch:
        pytest.skip("there would be no negatives at all")
    for dtype in RULE:
        kind = "row_logsumexp", epilogue, True, in_batch
        given = list(inputs("row_logsumexp", batch, 24, dtype, batch * each))
        given[2][~counted.view(-1)] = torch.nan  # padding
        given[3] = counted
        if not in_batch:
            given[6:] = Call(Pairs(query_bias=given[11]), dtype, None).arguments
        every = all_needs(0, in_batch)
        for needs in (every, [*every[:2], False, *every[3:]], [False, True, True, False] * 2):
            needs = [*needs[:5], needs[5] and in_batch]
            for reduction in ("mean", "none"):
                assert_close(*both("contrast", *given, *kind, reduction, needs), dtype)
        losses, statistics, *_ = overload("contrast", "reference")(*given, *kind, "none", every)
        grad = torch.randn_like(losses)
        compared = both("contrast_backward", grad, statistics, *given, *kind, every)
        assert_close(*compared, dtype, batch)


def test_bounds():
    for statistic in STATISTICS:
        given = inputs(statistic, 60, 24, torch.float32, None, bounded=True, one=True)
        kind = statistic, "softplus", True, True
        compared = both("contrast", *given, *kind, "mean", [True, True, False, True, True, True])
        assert_close(*compared, torch.float32)


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (-6, "row_softplus", "statistic: expected one of a fold"),
        (-5, "softmax", "epilogue: expected softplus"),
        (-3, False, "in_batch: expected true"),
        (-2, "median", "reduction: expected mean, sum or none"),
        (-1, [True] * 3, "needs: expected 6, got 3"),
        (1, torch.randn(4, 24), "second: expected"),
        (2, torch.randn(4, 23), "negative_keys: expected"),
        (2, torch.randn(24), "negative_keys: expected"),
        (3, torch.ones(5, 2, dtype=torch.bool), "negative_keys: expected 2 for each of the 5"),
        (3, torch.ones(5), "counted: expected contiguous Bool"),
        (4, torch.randn(3, 4), "margin: expected contiguous Float"),
        (4, torch.randn(5), "margin: expected contiguous Float"),
        (5, torch.randn(1), "scale: expected"),
        (11, torch.randn((), dtype=torch.float64), "query_bias: expected contiguous Float"),
        (11, torch.randn(4), "query_bias: expected contiguous Float"),
    ],
)
def test_bad_arguments(position, bad, message):
    kind = "row_logsumexp", "softplus", True, True
    given = [*inputs(kind[0], 5, 24, torch.float32, 7), *kind, "mean", [True] * 6]
    overload("contrast", "native")(*given)
    given[position] = bad
    with pytest.raises(RuntimeError, match=message):
        overload("contrast", "native")(*given)


def test_further_negatives_of_both_directions_are_refused():
    given = inputs("row_col_logsumexp", 5, 24, torch.float32, 7)
    with pytest.raises(RuntimeError, match="negative_keys: expected none for row_col"):
        overload("contrast", "native")(
            *given, "row_col_logsumexp", "softplus", True, True, "mean", [True] * 6
        )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_queue_with_a_row_that_is_not_finite(value):
    """Every query has it for a negative: nothing may hide it."""
    for needs in ([True] * 6, [True, True, False, True, True, True]):
        given = inputs("row_logsumexp", 9, 24, torch.float32, 30)
        given[2][4, 1] = value
        loss, *_ = overload("contrast", "native")(
            *given, "row_logsumexp", "softplus", False, True, "mean", needs
        )
        assert not loss.isfinite()
