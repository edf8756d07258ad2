"""Which pairs count in the compiled statistics, in every combination, against the reference."""

import pytest
import torch

from cl_kernels._ops import overload
from cl_kernels.calls import Call
from cl_kernels.pairs import Pairs
from cl_kernels.statistics.table import STATISTICS
from python_tests.conftest import skip_unless_usable
from python_tests.helpers import accumulator

WIDTH = 8
SIZES = [(1, 1), (7, 9), (70, 45), (300, 700)]  # one tile; several; several that threads share
BOUNDED = ("", "below", "above", "below above")


@pytest.fixture(scope="module", autouse=True)
def native():
    skip_unless_usable("native")


def whole_numbers(rows, dtype=torch.float32):
    """Embeddings whose inner products are exact, so that bounds are met with equality."""
    return torch.randint(-1, 2, (rows, WIDTH)).to(dtype)


def some(values, count, dtype):
    values = torch.tensor(values, dtype=dtype)
    return values[torch.randint(len(values), (count,))]


def pairs(M, N, filters, bounded, dtype):
    """Of a Gram matrix too they are not symmetric."""
    ids = ((M, N, 1000), (M, N, 3), (M, N, 5))[:filters]
    bounds = {"below": (-1.0, 0.0, 3.0, torch.inf), "above": (-torch.inf, -4.0, -1.0, 2.0)}
    return Pairs(
        tuple(torch.randint(most, (rows,)) for rows, _, most in ids),
        tuple(torch.randint(most, (cols,)) for _, cols, most in ids),
        (False, False, True)[:filters],
        **{name: some(bounds[name], M, dtype) for name in bounded.split()},
        **more_options(M, N, dtype) if filters > 1 else {},
    )


def more_options(M, N, dtype):
    """Biases that are exact, and guides that meet their ceilings with equality."""
    return {
        "query_bias": some((-1.0, 0.5), M, dtype),
        "key_bias": some((-0.5, 2.0), N, dtype),
        "query_guide": whole_numbers(M, dtype),
        "key_guide": whole_numbers(N, dtype),
        "ceiling": some((-1.0, 2.0, torch.inf), M, dtype),
    }


def both(operation, *arguments):
    """What the compiled library computes, and what the reference does."""
    results = []
    for backend in ("native", "reference"):
        result = overload(operation, backend)(*arguments)
        results.append(result if isinstance(result, tuple) else (result,))
    return results


def assert_close(ours, expected, dtype, summed=0.0):
    """``summed``: the size of what a result of one number may have cancelled."""
    rtol = 1e-5 if accumulator(dtype) == torch.float32 else 1e-12
    for a, b in zip(ours, expected, strict=True):
        largest = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0
        atol = rtol * max(largest, 0 if b.dim() else summed)
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bounded", BOUNDED)
@pytest.mark.parametrize("scale", [0.5, -0.5, 0.0])
def test_statistics(name, size, bounded, scale):
    statistic = STATISTICS[name]
    if statistic.fold.name != "logsumexp" and bounded in ("below", "above"):
        pytest.skip("the folds see logits, whatever made them")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for filters in (0, 1, 3):
            M, N = size if not statistic.of_one else (sum(size),) * 2
            query, key = whole_numbers(M, dtype), whole_numbers(N, dtype)
            given = query, None if statistic.of_one else key
            call = Call(pairs(M, N, filters, bounded, accumulator(dtype)), dtype, None)
            inputs = (*given, torch.tensor(scale, dtype=accumulator(dtype)), *call.arguments)
            values, expected = both(name, *inputs)
            assert_close(values, expected, dtype)
            expected = statistic.differentiable(expected)
            grads = [torch.randn_like(x) for x in expected]
            summed = sum(g.abs().sum().item() for g in grads)
            biased = filters > 1
            for needs in ([1, 1, biased, 0], [1, 0, 0, biased], [0, 1, biased, biased]):
                if needs[0] or not statistic.of_one:
                    arguments = grads, expected, *inputs, needs
                    assert_close(*both(f"{name}_backward", *arguments), dtype, summed)
            if statistic.has_weighted_key:
                assert_close(*both(f"{name}_weighted_key", *inputs), dtype)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("bounded", BOUNDED)
def test_nan_rows(name, bounded):
    """A NaN is within no bounds; without bounds it shows where it counts."""
    statistic = STATISTICS[name]
    M, N = (80, 60) if not statistic.of_one else (140, 140)
    query, key = whole_numbers(M), whole_numbers(N)
    query[[3, 70], 2], key[11, 0] = torch.nan, torch.nan
    given = query, None if statistic.of_one else key
    call = Call(pairs(M, N, 1, bounded, torch.float32), torch.float32, None)
    inputs = (*given, torch.tensor(0.5), *call.arguments)
    values, expected = both(name, *inputs)
    assert_close(values, expected, torch.float32)
    expected = statistic.differentiable(expected)
    grads = [torch.randn_like(x) for x in expected]
    assert_close(*both(f"{name}_backward", grads, expected, *inputs, [1, 1, 0, 0]), torch.float32)


@pytest.mark.parametrize("logit", [1e4, 1e6])
def test_gradients_of_large_logits(logit):
    """Weights are taken of the very logits that the statistic has seen: twins weigh one half."""
    for rows in (16, 200, 700):
        half = torch.nn.functional.normalize(torch.randn(rows // 2, 24), dim=1)
        x = torch.cat((half, half))
        ids = torch.arange(rows)
        call = Call(Pairs((ids,), (ids,), (False,)), torch.float32, None)
        inputs = x, None, torch.tensor(logit), *call.arguments
        (values,), _ = both("self_logsumexp", *inputs)
        assert ((values - logit).abs() <= 1e-6 * logit).all()
        grad, *_ = overload("self_logsumexp_backward", "native")(
            [torch.ones(rows)], [values], *inputs, [True, False, False, False]
        )
        expected = 2 * logit * x  # every row's twin, and once more as its twin
        assert (grad - expected).norm() <= 1e-6 * expected.norm()
