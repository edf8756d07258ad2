"""Bad arguments of a queue: told by name, and the queue is as it was."""

import pytest
import torch

from cl_kernels.memory import Queue

WIDTH = 3


def filled(labels):
    queue = Queue(8, WIDTH, labels=labels)
    for _ in range(3):
        queue.push(torch.randn(3, WIDTH), torch.randint(0, 5, (3,)) if labels else None)
    return queue


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 4), {}, ValueError, "size: expected at least 1, got 0"),
        ((4, 0), {}, ValueError, "dim: expected at least 1, got 0"),
        ((4.0, 4), {}, TypeError, "size: expected an integer, got float"),
        ((4, True), {}, TypeError, "dim: expected an integer, got bool"),
        ((4, 4), {"labels": 1}, TypeError, "labels: expected True or False, got 1"),
        ((4, 4), {"dtype": torch.int64}, TypeError, "dtype: expected one of .*, got torch.int64"),
        ((4, 4), {"dtype": "float32"}, TypeError, "dtype: expected one of"),
    ],
)
def test_bad_constructions(arguments, options, error, message):
    with pytest.raises(error, match=message):
        Queue(*arguments, **options)


KEYS, LABELS = torch.randn(2, WIDTH), torch.arange(2)
BAD_PUSHES = [
    ((torch.randn(2, 4), LABELS), {}, ValueError, "keys: expected the width of the queue"),
    ((torch.randn(WIDTH), LABELS), {}, ValueError, "keys: expected embeddings of shape"),
    ((torch.ones(2, WIDTH).long(), LABELS), {}, TypeError, "keys: expected one of .*int64"),
    ((KEYS.tolist(), LABELS), {}, TypeError, "keys: expected a tensor, got list"),
    ((KEYS.to("meta"), LABELS), {}, ValueError, "keys: expected the device of the queue, cpu"),
    ((KEYS,), {}, ValueError, "labels: expected some for a queue with labels, got None"),
    ((KEYS, LABELS[:1]), {}, ValueError, r"labels: expected one label for each of the 2 rows"),
    ((KEYS, LABELS.float()), {}, TypeError, "labels: expected an integer tensor, got torch.float"),
    ((KEYS, LABELS.bool()), {}, TypeError, "labels: expected an integer tensor, got torch.bool"),
    ((KEYS, [0, 1]), {}, TypeError, "labels: expected an integer tensor, got list"),
    ((KEYS, LABELS), {"unique": 1}, TypeError, "unique: expected True or False, got 1"),
    ((KEYS, LABELS), {"gather": "all"}, TypeError, "gather: expected True or False, got 'all'"),
    ((KEYS, LABELS), {"group": object()}, ValueError, "gather: expected True with a group"),
    ((KEYS, LABELS), {"group": 1, "gather": True}, TypeError, "group: expected a torch"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD_PUSHES)
def test_bad_pushes_leave_the_queue_as_it_was(arguments, options, error, message):
    queue = filled(True)
    before = queue.keys.clone(), queue.labels.clone()
    with pytest.raises(error, match=message):
        queue.push(*arguments, **options)
    assert torch.equal(queue.keys, before[0]) and torch.equal(queue.labels, before[1])


def test_bad_pushes_without_labels():
    queue = filled(False)
    with pytest.raises(ValueError, match="labels: expected None for a queue without labels"):
        queue.push(KEYS, LABELS)
    with pytest.raises(ValueError, match="unique: expected False of a queue without labels"):
        queue.push(KEYS, unique=True)


def test_gather_in_one_process():
    queue = Queue(4, WIDTH)
    queue.push(KEYS, gather=True)
    assert torch.equal(queue.keys, KEYS)
