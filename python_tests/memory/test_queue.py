"""What a queue holds, against a list that forgets; its state, copies, banks and errors."""

import copy
import pickle
import random

import pytest
import torch
from torch import nn

from cl_kernels.memory import Queue

WIDTH = 3
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Listed:
    """The same by one row at a time."""

    def __init__(self, size):
        self.size, self.rows = size, []

    def push(self, keys, labels, unique=False):
        rows = list(zip(keys, labels.tolist(), strict=True))
        if unique:
            rows = [r for i, r in enumerate(rows) if r[1] not in [x for _, x in rows[i + 1 :]]]
        self.rows = (self.rows + rows)[-self.size :]

    def check(self, queue):
        assert len(queue) == queue.count == len(self.rows)
        assert queue.full == (len(self.rows) == self.size)
        assert queue.keys.is_contiguous() and queue.keys.shape == (len(self.rows), WIDTH)
        assert queue.labels.dtype == torch.int64
        assert queue.labels.tolist() == [label for _, label in self.rows]
        if self.rows:
            expected = torch.stack([key for key, _ in self.rows])
            assert torch.equal(queue.keys, expected.to(queue.dtype))


def batch(n, dtype=torch.float32):
    return torch.randn(n, WIDTH).to(dtype), torch.randint(0, 5, (n,))


def filled(size=8, pushes=(3, 3, 3), **options):
    queue = Queue(size, WIDTH, **options)
    for n in pushes:
        keys, labels = batch(n)
        queue.push(keys, labels if options.get("labels") else None)
    return queue


@pytest.mark.parametrize("size", [1, 2, 7, 8, 40])
@pytest.mark.parametrize("unique", [False, True])
def test_first_in_first_out(size, unique, nan_filled_memory):
    draw = random.Random(size)
    queue, listed = Queue(size, WIDTH, labels=True), Listed(size)
    listed.check(queue)
    for _ in range(60):
        keys, labels = batch(draw.choice([0, 1, 2, 3, 5, size - 1, size, size + 1, 3 * size]))
        queue.push(keys, labels, unique=unique)
        listed.push(keys, labels, unique)
        listed.check(queue)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_keys_are_rounded_to_the_dtype_of_the_queue(stored, given):
    queue = Queue(4, WIDTH, dtype=stored)
    keys, _ = batch(3, given)
    queue.push(keys)
    assert torch.equal(queue.keys, keys.to(stored))
    assert torch.equal(queue.keys_like(keys), keys.to(stored).to(given))


def test_keys_of_any_layout_and_labels_of_any_integers():
    queue = Queue(9, WIDTH, labels=True)
    wide = torch.randn(WIDTH, 12)
    queue.push(wide.T[::3], torch.arange(8, dtype=torch.uint8)[::2])
    queue.push(wide[:1, :WIDTH].expand(2, WIDTH), torch.tensor([-1, 2**31 - 1], dtype=torch.int32))
    queue.push(queue.keys[:3], queue.labels[:3])
    assert queue.labels.tolist() == [0, 2, 4, 6, -1, 2**31 - 1, 0, 2, 4]
    assert torch.equal(queue.keys[:4], wide.T[::3])
    assert torch.equal(queue.keys[4:6], wide[0, :WIDTH].repeat(2, 1))
    assert torch.equal(queue.keys[6:], wide.T[:9:3])


def test_without_labels():
    queue = filled()
    assert queue.keys.shape == (8, WIDTH)
    with pytest.raises(ValueError, match="labels: expected a queue made with labels=True"):
        _ = queue.labels
    assert repr(queue) == "Queue(8, 3, dtype=torch.float32)"
    assert repr(filled(labels=True)) == "Queue(8, 3, labels=True, dtype=torch.float32)"


def test_clear():
    queue = filled(labels=True)
    queue.clear()
    assert len(queue) == 0 and queue.keys.shape == (0, WIDTH) and queue.labels.shape == (0,)
    keys, labels = batch(2)
    queue.push(keys, labels)
    assert torch.equal(queue.keys, keys) and torch.equal(queue.labels, labels)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("pushes", [(), (3,), (3, 3, 3, 4), (8,)])
def test_training_goes_on_from_a_checkpoint(tmp_path, labels, pushes):
    model = nn.ModuleDict({"queue": filled(8, pushes, labels=labels), "head": nn.Linear(2, 2)})
    torch.save(model.state_dict(), tmp_path / "state")
    other = nn.ModuleDict({"queue": filled(8, (5,), labels=labels), "head": nn.Linear(2, 2)})
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for _ in range(9):
        keys, of = batch(3)
        for queue in (model["queue"], other["queue"]):
            queue.push(keys, of if labels else None)
        assert torch.equal(model["queue"].keys, other["queue"].keys)
        assert not labels or torch.equal(model["queue"].labels, other["queue"].labels)
    named = {f"queue.{name}" for name in ("keys", "count", *["labels"] * labels)}
    assert named < model.state_dict().keys()
    assert not list(model.buffers())


def test_a_checkpoint_does_not_follow_the_queue():
    queue = filled()
    state = queue.state_dict()
    before = copy.deepcopy(state)
    for _ in range(9):
        queue.push(batch(3)[0])
    assert all(torch.equal(state[name], before[name]) for name in state)
    queue.load_state_dict(state)
    assert torch.equal(queue.keys, before["keys"])


def test_a_checkpoint_of_another_dtype():
    queue, other = filled(labels=True), Queue(8, WIDTH, labels=True, dtype=torch.bfloat16)
    other.load_state_dict(queue.state_dict())
    assert other.dtype == torch.bfloat16
    assert torch.equal(other.keys, queue.keys.bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(9, WIDTH)}, r"keys: expected shape \[8, 3\], got shape \[9, 3\]"),
        ({"labels": torch.zeros(8, 1)}, r"labels: expected shape \[8\], got shape \[8, 1\]"),
        ({"count": torch.tensor(9)}, "count: expected 0 to 8, got 9"),
        ({"count": 3}, r"count: expected shape \[\], got int"),
        ({"keys": None}, "Missing key.*keys"),
        ({"others": torch.zeros(1)}, "Unexpected key.*others"),
    ],
)
def test_a_checkpoint_that_does_not_fit(change, message):
    queue = filled(labels=True)
    before = queue.keys
    state = filled(labels=True).state_dict() | change
    state = {name: x for name, x in state.items() if x is not None}
    with pytest.raises(RuntimeError, match=message):
        queue.load_state_dict(state)
    assert torch.equal(queue.keys, before) or "others" in change


def test_a_checkpoint_with_labels_for_a_queue_without():
    with pytest.raises(RuntimeError, match=r"Unexpected key.*labels"):
        Queue(8, WIDTH).load_state_dict(filled(labels=True).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*labels"):
        Queue(8, WIDTH, labels=True).load_state_dict(filled().state_dict())
    queue = filled(labels=True)
    before = queue.keys
    missing = queue.load_state_dict(filled().state_dict(), strict=False).missing_keys
    assert missing == ["labels"] and torch.equal(queue.keys, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_their_own(copied):
    queue = filled(labels=True)
    other = copied(queue)
    assert torch.equal(other.keys, queue.keys) and torch.equal(other.labels, queue.labels)
    before = queue.keys.clone()
    listed = Listed(8)
    listed.rows = list(zip(other.keys.clone(), other.labels.tolist(), strict=True))
    for _ in range(9):
        keys, labels = batch(3)
        other.push(keys, labels)
        listed.push(keys, labels)
        listed.check(other)
    assert torch.equal(queue.keys, before)


def test_moves_with_its_model():
    queue = filled(labels=True)
    keys, labels = queue.keys, queue.labels
    model = nn.ModuleList([queue]).to(torch.float64)
    assert queue.keys.dtype == torch.float64 and torch.equal(queue.keys, keys.double())
    assert torch.equal(queue.labels, labels)
    model.half()
    queue.push(*batch(2))
    assert queue.keys.dtype == torch.float16 and len(queue) == 8
    model.to("meta")
    assert queue.keys.is_meta and queue.labels.is_meta and queue.device.type == "meta"
    with pytest.raises(ValueError, match="keys: expected the device of the queue, meta, got cpu"):
        queue.push(*batch(2))


class TestBanks:
    @pytest.mark.parametrize("batches", range(1, 9))
    def test_of_moco(self, batches):
        bank, pointer = torch.randn(WIDTH, 8), 0
        listed = Listed(8)
        listed.push(bank.T.clone(), torch.zeros(8))
        for _ in range(batches):
            keys, labels = batch(4)
            bank[:, pointer : pointer + 4] = keys.T
            pointer = (pointer + 4) % 8
            listed.push(keys, labels)
        queue = Queue.from_bank(bank, torch.zeros(8).long(), newest=pointer - 1)
        listed.rows = [(key, 0) for key, _ in listed.rows]
        listed.check(queue)
        bank.zero_()
        listed.check(queue)
        ours = queue.to_bank()
        assert torch.equal(ours, queue.keys.T) and ours.is_contiguous()
        ours[:, :4] = batch(4)[0].T
        assert torch.equal(Queue.from_bank(ours, newest=3).keys[:4], queue.keys[4:])

    def test_labels_follow_their_keys(self):
        bank, labels = torch.arange(5.0).expand(WIDTH, 5), torch.arange(5)
        for newest in (None, -1, 0, 3, 4):
            queue = Queue.from_bank(bank, labels, newest=newest)
            assert queue.full and torch.equal(queue.keys[:, 0].long(), queue.labels)
            assert queue.labels[-1] == (4 if newest is None else newest % 5)

    def test_keeps_dtype(self):
        assert Queue.from_bank(torch.randn(3, 4).bfloat16()).dtype == torch.bfloat16
        assert filled(8, (3,)).to_bank().shape == (WIDTH, 3)

    @pytest.mark.parametrize("newest", [-2, 4])
    def test_newest_out_of_range(self, newest):
        with pytest.raises(
            ValueError, match=f"newest: expected a column of 4, or -1, got {newest}"
        ):
            Queue.from_bank(torch.randn(3, 4), newest=newest)

    @pytest.mark.parametrize(
        ("bank", "labels", "error", "message"),
        [
            (torch.randn(3), None, ValueError, "bank: expected embeddings"),
            (torch.randn(3, 0), None, ValueError, "bank: expected embeddings"),
            (torch.ones(3, 4).long(), None, TypeError, "bank: expected one of"),
            (torch.randn(3, 4), torch.arange(3), ValueError, "labels: expected one label for each"),
            (torch.randn(3, 4), torch.randn(4), TypeError, "labels: expected an integer tensor"),
        ],
    )
    def test_bad_banks(self, bank, labels, error, message):
        with pytest.raises(error, match=message):
            Queue.from_bank(bank, labels)


def test_a_shallow_copy_goes_on_by_itself():
    queue = Queue(8, 2)
    queue.push(torch.zeros(4, 2))
    other = copy.copy(queue)
    queue.push(torch.ones(2, 2))
    keys = queue.keys.clone()
    other.push(torch.full((2, 2), 7.0))
    assert torch.equal(queue.keys, keys)
    assert torch.equal(other.keys[-2:], torch.full((2, 2), 7.0)) and len(other) == 6
