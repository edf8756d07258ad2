"""The compiled operations called by hand: a bad argument is an error, never a crash."""

import re

import pytest
import torch

from cl_kernels._ops import FUSED_SCHEMAS, SCHEMAS, overload
from python_tests.conftest import skip_unless_usable
from python_tests.helpers import operator

OPERATIONS = (*SCHEMAS, *FUSED_SCHEMAS, "topk", "select_topk")
EMBEDDINGS = ("query", "key", "x", "view_0", "view_1")
NO_LISTS = {"exclude_offsets": None, "exclude_keys": None}
MESSAGE = re.compile(r"cl_kernels: [\w, ]+: expected .*, got ")


@pytest.fixture(scope="module", autouse=True)
def native():
    skip_unless_usable("native")


def arguments(operation):
    """Good arguments by name, in the schema's order: with filters, all optional tensors given."""
    M, N, width = 7, 9, 5
    if "self" in operation or operation == "pair_contrast":
        N = M
    rows = 2 * M if operation == "self_contrast" else M
    cols = rows if rows > M else N
    is_search = operation == "topk"
    values = {
        **{name: torch.randn(M, width) for name in EMBEDDINGS},
        "key": torch.randn(N, width),
        **{name: torch.randn(M) for name in ("grad", "lse", "grad_row", "row", "query_factor")},
        **{name: torch.randn(N) for name in ("grad_col", "col", "key_factor")},
        **{name: torch.randn(M) if is_search else None for name in ("below", "above")},
        "scale": torch.tensor(2.0),
        "query_ids": [torch.arange(rows), torch.arange(rows) % 3],
        "key_ids": [torch.arange(cols), torch.arange(cols) % 3],
        "keep_same": [False, True],
        "compute_dtype": torch.float32,
        "normalize": True,
        "mean": True,
        "needs": [True, True, True],
        "symmetric": True,
        "need_query": True,
        "need_key": True,
        "k": 3,
        "exclude_offsets": torch.tensor([0, 2, 2, 3, 3, 4, 4, 6]),
        "exclude_keys": torch.tensor([1, 8, 0, 5, 3, 3]),
        "packed": torch.randint(1 << 40, (M, 2, 4)),
        "counts": torch.full((M, 2), 3, dtype=torch.int32),
    }
    schema = operator(operation, "native")._schema
    return {argument.name: values.get(argument.name) for argument in schema.arguments}


def bad_tensors(name, x, alone):
    """What differs from a good tensor in one way. Rows of filters hold those of embeddings."""
    other = {torch.float32: torch.float64, torch.int32: torch.int64, torch.int64: torch.int32}
    yield x[None]
    yield x.to(other[x.dtype])
    yield x.to(torch.complex64)
    if x.dim() == 0:
        return
    yield torch.cat([x, x[:1]])
    yield x[1:]
    yield x[:0]
    yield torch.stack([x, x], -1)[..., 0]
    yield x[..., 0]
    if name in EMBEDDINGS:
        yield x.t()
        yield x.long()
        if not alone:
            yield torch.cat([x, x], 1)
            yield x.bfloat16()


def bad_lists(name, x):
    offsets = {
        "exclude_offsets": [
            [1, 2, 2, 3, 3, 4, 4, 6],
            [0, 2, 2, 3, 3, 4, 4, 5],
            [0, 2, 2, 3, 3, 4, 4, 7],
            [0, 2, 9, 3, 3, 4, 4, 6],
            [0, -2, 2, 3, 3, 4, 4, 6],
            [0, 2, 2, 3, 3, 4, 4, 1 << 62],
        ],
        "exclude_keys": [[8, 1, 0, 5, 3, 3], [1, 8, 0, 5, 4, 3]],
    }
    yield from (torch.tensor(numbers) for numbers in offsets.get(name, ()))
    if name in offsets:
        yield None


def bad_values(operation, name, value):
    if isinstance(value, torch.Tensor):
        alone = operation.startswith("self_logsumexp")
        yield from bad_tensors(name, value, alone)
        yield from bad_lists(name, value)
    elif name in ("query_ids", "key_ids"):
        yield value[:1]
        yield [*value, value[0]]
        for position in range(2):
            for ids in bad_tensors(name, value[position], False):
                yield [*value[:position], ids, *value[position + 1 :]]
    elif name == "keep_same":
        yield from ([], [True], [True, False, True])
    elif name == "needs":
        yield from ([], [True, True], [True] * 4)
    elif name == "compute_dtype":
        yield from (torch.int32, torch.complex64, torch.bool)
    elif name == "k":
        yield from (0, -1, -(1 << 62))
    elif name == "below":
        yield torch.zeros(7)  # not built yet


@pytest.mark.parametrize("operation", OPERATIONS)
def test_bad_arguments(operation):
    good = arguments(operation)
    call = overload(operation, "native")
    call(*good.values())
    refused = set()
    for name, value in good.items():
        for bad in bad_values(operation, name, value):
            with pytest.raises(RuntimeError) as error:
                call(*(good | {name: bad}).values())
            if not (name == "below" and value is None):
                assert MESSAGE.search(str(error.value)), (name, str(error.value))
            refused.add(name)
    free = {"normalize", "mean", "symmetric", "need_query", "need_key", "logit_bound"}
    free |= {"key_bias", "guide_query", "guide_key"}
    assert refused == set(good) - free
    call(*good.values())


def test_more_places_than_memory():
    for operation in ("topk", "select_topk"):
        with pytest.raises(RuntimeError):
            overload(operation, "native")(*(arguments(operation) | {"k": 1 << 62}).values())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("size", ["no rows", "no width"])
def test_nothing_is_no_error(operation, size):
    def emptied(name, value):
        if isinstance(value, list):
            return [emptied(name, part) for part in value]
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        if name == "exclude_offsets":
            return value[:1] * 0
        return value[:0]

    good = arguments(operation)
    if size == "no rows":
        empty = {name: emptied(name, value) for name, value in good.items()}
    else:
        empty = {name: v[:, :0] if name in EMBEDDINGS else v for name, v in good.items()}
    for result in torch.utils._pytree.tree_leaves(overload(operation, "native")(*empty.values())):
        assert not result.isnan().any()
