"""The compiled operations called by hand: a bad argument is an error, never a crash."""

import re

import pytest
import torch

from cl_kernels._ops import schemas
from python_tests.conftest import skip_unless_usable

OPERATIONS = [
    *(name for name in schemas if not name.startswith("contrast")),
    "select_topk",
]
EMBEDDINGS = ("query", "key")
MESSAGE = re.compile(r"cl_kernels: [\w, ]+: expected .*, got ")


@pytest.fixture(scope="module", autouse=True)
def native():
    skip_unless_usable("native")


def operator(operation):
    packet = getattr(torch.ops.cl_kernels, operation)
    return packet.default if operation == "select_topk" else packet.native


def arguments(operation):
    """Good arguments by name, in the schema's order: with filters, all optional tensors given."""
    M, N, width = 7, 9, 5
    is_self = operation.startswith("self")
    if is_self:
        N = M
    of_statistics = {
        "query_bias": torch.randn(M),
        "key_bias": torch.randn(N),
        "query_guide": torch.randn(M, 3),
        "key_guide": torch.randn(N, 3),
        "ceiling": torch.randn(M),
    }
    sides = [M, N] if operation.startswith("row_col") else [M]
    values = {
        "query": torch.randn(M, width),
        "key": None if is_self else torch.randn(N, width),
        "grads": [torch.randn(size) for size in sides],
        "values": [torch.randn(size) for size in sides],
        **{name: torch.randn(M) for name in ("below", "above", "query_factor")},
        "key_factor": torch.randn(N),
        **({} if operation == "topk" else of_statistics),
        "scale": torch.tensor(2.0),
        "query_ids": [torch.arange(M), torch.arange(M) % 3],
        "key_ids": [torch.arange(N), torch.arange(N) % 3],
        "keep_same": [False, True],
        "compute_dtype": torch.float32,
        "needs": [True] * 4,
        "k": 3,
        "exclude_offsets": torch.tensor([0, 2, 2, 3, 3, 4, 4, 6]),
        "exclude_keys": torch.tensor([1, 8, 0, 5, 3, 3]),
        "packed": torch.randint(1 << 40, (M, 2, 4)),
        "counts": torch.full((M, 2), 3, dtype=torch.int32),
    }
    schema = operator(operation)._schema
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


def bad_lengths(name, value):
    """Lists of the wrong length, where an empty one is no good either."""
    if name == "keep_same":
        return [], [True], [True, False, True]
    if name == "needs":
        return [], [True], [True] * 5
    return value[:-1], [*value, value[0]]


def bad_values(operation, name, value):
    if isinstance(value, torch.Tensor):
        alone = operation.startswith("self")
        yield from bad_tensors(name, value, alone)
        yield from bad_lists(name, value)
        if name == "key" and operation != "topk":
            yield None
    elif isinstance(value, list):
        yield from bad_lengths(name, value)
        if name in ("keep_same", "needs"):
            return
        for position in range(len(value)):
            for bad in bad_tensors(name, value[position], False):
                yield [*value[:position], bad, *value[position + 1 :]]
    elif name == "compute_dtype":
        yield from (torch.int32, torch.complex64, torch.bool)
    elif name == "k":
        yield from (0, -1, -(1 << 62))
    elif name == "key":
        yield torch.randn(7, 5)  # a Gram matrix has none


@pytest.mark.parametrize("operation", OPERATIONS)
def test_bad_arguments(operation):
    good = arguments(operation)
    call = operator(operation)
    call(*good.values())
    refused = set()
    for name, value in good.items():
        for bad in bad_values(operation, name, value):
            with pytest.raises(RuntimeError) as error:
                call(*(good | {name: bad}).values())
            assert MESSAGE.search(str(error.value)), (name, str(error.value))
            refused.add(name)
    given = {name for name, value in good.items() if value is not None or name == "key"}
    assert refused == given - {"logit_bound"}
    call(*good.values())


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "select_topk"])
def test_at_most_three_filters(operation):
    good = arguments(operation)
    names = ("query_ids", "key_ids", "keep_same")
    operator(operation)(*(good | {name: [good[name][0]] * 3 for name in names}).values())
    with pytest.raises(RuntimeError, match="keep_same: expected at most 3 filters, got 4"):
        operator(operation)(*(good | {name: [good[name][0]] * 4 for name in names}).values())


def test_more_places_than_memory():
    for operation in ("topk", "select_topk"):
        with pytest.raises(RuntimeError):
            operator(operation)(*(arguments(operation) | {"k": 1 << 62}).values())


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
        narrow = EMBEDDINGS if good.get("key") is not None else ("query",)
        empty = {name: v[:, :0] if name in narrow else v for name, v in good.items()}
    for result in torch.utils._pytree.tree_leaves(operator(operation)(*empty.values())):
        assert not result.isnan().any()
