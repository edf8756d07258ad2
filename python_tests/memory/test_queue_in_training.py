"""Losses with a queue: their values and gradients, whenever keys are pushed."""

import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cl_kernels import PairFilter, info_nce, nt_xent, row_logsumexp, supcon
from cl_kernels.memory import Queue

B, D, K, T = 6, 5, 16, 0.2
EXACT = {"rtol": 1e-11, "atol": 1e-13}


def rows(n=B):
    return torch.randn(n, D, dtype=torch.float64)


def queue_of(n=K, **options):
    queue = Queue(K, D, dtype=torch.float64, **options)
    keys = rows(n)
    queue.push(keys, torch.arange(n) % 7 if options.get("labels") else None)
    return queue, keys


def textbook(query, key, negatives, kept=None):
    query, key, negatives = (F.normalize(x, dim=1) for x in (query, key, negatives))
    logits = query @ negatives.T / T
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
    logits = torch.cat(((query * key).sum(1, keepdim=True) / T, logits), dim=1)
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


LOSSES = {
    "info_nce": lambda q, k, keys: info_nce(q, k, keys, temperature=T),
    "in batch too": lambda q, k, keys: info_nce(q, k, keys, in_batch_negatives=True),
    "rows' losses": lambda q, k, keys: info_nce(q, k, keys, reduction="none").sum(),
    "hardest": lambda q, k, keys: info_nce(q, k, keys, hardest=3),
    "nt_xent": lambda q, k, keys: nt_xent(q, k, negative_keys=keys),
    "supcon": lambda q, k, keys: supcon(
        q, torch.arange(len(q)) % 3, keys, torch.arange(len(keys)) % 3, in_batch=True
    ),
    "eager": textbook,
    "statistic": lambda q, k, keys: row_logsumexp(q, keys, 3.0).sum(),
}


@pytest.mark.parametrize("pushes", [1, 2, 20])
@pytest.mark.parametrize("loss", LOSSES)
def test_pushes_between_forward_and_backward(loss, pushes):
    queue, keys = queue_of()
    query, key = rows().requires_grad_(), rows()
    expected = gradient(LOSSES[loss](query, key, keys), query)
    value = LOSSES[loss](query, key, queue.keys)
    for _ in range(pushes):
        queue.push(rows())
    torch.testing.assert_close(gradient(value, query), expected, **EXACT)


def test_several_batches_before_one_backward():
    queue, keys = queue_of()
    queries, losses, expected = [rows().requires_grad_() for _ in range(8)], [], []
    for query in queries:
        key = rows()
        losses.append(info_nce(query, key, queue.keys, temperature=T))
        expected.append(gradient(textbook(query, key, keys), query))
        queue.push(key)
        keys = torch.cat((keys, key))[-K:]
    torch.stack(losses).sum().backward()
    torch.testing.assert_close([x.grad for x in queries], expected, **EXACT)


def test_training_against_the_textbook():
    """Keys of one encoder, in float64, over many steps."""
    ours, theirs = (nn.Linear(D, D).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    queue, keys = Queue(K, D, dtype=torch.float64), rows(0)
    for _ in range(12):
        x, y = rows(), rows()
        loss = info_nce(ours(x), ours(y), queue.keys, temperature=T)
        queue.push(ours(y))
        expected = textbook(theirs(x), theirs(y), keys)
        keys = torch.cat((keys, theirs(y).detach()))[-K:]
        for module, of in ((ours, loss), (theirs, expected)):
            module.zero_grad()
            of.backward()
            with torch.no_grad():
                for p in module.parameters():
                    p -= 0.1 * p.grad
        torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), **EXACT)


def test_keys_have_no_gradient_and_do_not_change():
    queue = Queue(4, D, dtype=torch.float64)
    x = rows(3).requires_grad_()
    queue.push(x)
    first = queue.keys
    before = first.clone()
    assert not first.requires_grad and first.is_leaf
    with torch.no_grad():
        x.add_(1)
    for _ in range(10):
        queue.push(rows(2))
    assert torch.equal(first, before) and first._version == 0
    assert queue.keys.requires_grad_() is not queue.keys
    assert not queue.keys.requires_grad


def test_no_step_copies_the_queue():
    """Its keys are views of memory that changes once in a while."""
    queue = Queue(64, D)
    places = []
    for _ in range(64):
        queue.push(torch.randn(2, D))
        assert queue.keys.data_ptr() == queue.keys.data_ptr()
        places.append(queue.keys.untyped_storage().data_ptr())
        assert queue.keys.untyped_storage().nbytes() == 80 * D * 4
    assert sum(a != b for a, b in itertools.pairwise(places)) == 3


def test_pushes_read_no_values():
    """Nothing waits for a device: a tensor on meta has none."""
    queue = Queue(8, D, labels=True, device="meta")
    for _ in range(9):
        queue.push(rows(3).to("meta"), torch.empty(3, dtype=torch.int64, device="meta"))
    assert queue.full and queue.keys.shape == (8, D) and queue.labels.is_meta


def test_the_same_tensor_in_every_place():
    queue, keys = queue_of(B)
    x = queue.keys.clone().requires_grad_()
    loss = info_nce(x, x, queue.keys, temperature=T)
    queue.push(x)
    queue.push(x)
    expected = gradient(textbook(x, x, keys), x)
    torch.testing.assert_close(gradient(loss, x), expected, **EXACT)
    assert torch.equal(queue.keys[-2 * B :], x.detach().repeat(2, 1))


def test_an_empty_queue_is_no_negative():
    queue = Queue(K, D, labels=True)
    query, key, ids = rows().float().requires_grad_(), rows().float(), torch.arange(B)
    others = PairFilter(ids, queue.labels, "different")
    loss = info_nce(query, key, queue.keys, negative_where=others)
    assert loss == 0 and not gradient(loss, query).any()
    alone = nt_xent(query, key)
    filtered = PairFilter(ids.repeat(2), queue.labels, "different")
    with_queue = nt_xent(query, key, negative_keys=queue.keys, negative_where=filtered)
    torch.testing.assert_close(with_queue, alone)
    loss = supcon(query, ids % 2, queue.keys, queue.labels, in_batch=True)
    torch.testing.assert_close(loss, supcon(query, ids % 2))


@pytest.mark.parametrize("pushes", [0, 1, 5])
def test_ids_reach_the_filters(pushes):
    queue, keys = queue_of(labels=True)
    ids, of_keys = torch.randint(0, 7, (B,)), torch.arange(K) % 7
    query, key = rows().requires_grad_(), rows()
    kept = ids[:, None] != of_keys
    expected = textbook(query, key, keys, kept)
    others = PairFilter(ids, queue.labels, "different")
    loss = info_nce(query, key, queue.keys, temperature=T, negative_where=others)
    for _ in range(pushes):
        queue.push(key, ids)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(gradient(loss, query), gradient(expected, query), **EXACT)


def test_cross_batch_memory():
    """SupCon over the batch's other rows and the memory, positives by label."""
    memory, keys = queue_of(labels=True)
    z, labels, of_keys = rows().requires_grad_(), torch.arange(B) % 3, torch.arange(K) % 7
    loss = supcon(z, labels, memory.keys, memory.labels, temperature=T, in_batch=True)
    memory.push(z, labels)
    unit = F.normalize(z, dim=1)
    logits = unit @ torch.cat((unit, F.normalize(keys, dim=1))).T / T
    itself = torch.eye(B, B + K, dtype=torch.bool)
    positive = (labels[:, None] == torch.cat((labels, of_keys))) & ~itself
    log_p = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    expected = -(log_p * positive).sum(1) / positive.sum(1)
    torch.testing.assert_close(loss, expected.mean(), **EXACT)
    torch.testing.assert_close(gradient(loss, z), gradient(expected.mean(), z), **EXACT)


class TestDtypes:
    @pytest.mark.parametrize("of_queue", [torch.float32, torch.bfloat16])
    def test_autocast_takes_both(self, of_queue):
        queue = Queue(K, D, dtype=of_queue)
        queue.push(rows(K))
        query, key = rows().float().requires_grad_(), rows()
        half = query.bfloat16() if of_queue == torch.float32 else query
        exact = [x.detach().double() for x in (half, key.to(half.dtype), queue.keys)]
        with torch.autocast("cpu", torch.bfloat16):
            loss = info_nce(half, key.to(half.dtype), queue.keys, temperature=T)
            queue.push(half)
        assert abs(loss - textbook(*exact)) < 0.02 * loss
        assert gradient(loss, query).isfinite().all()

    def test_elsewhere_they_are_refused_or_converted(self):
        queue = Queue(K, D)
        queue.push(rows(K))
        query, key = rows().bfloat16(), rows().bfloat16()
        with pytest.raises(TypeError, match="negative_keys: expected the dtype of query"):
            info_nce(query, key, queue.keys)
        assert info_nce(query, key, queue.keys_like(query)).isfinite()


class TestContexts:
    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_without_gradients(self, context):
        with context():
            queue = Queue(4, D, dtype=torch.float64)
            for _ in range(5):
                queue.push(rows(3))
            assert not queue.keys.is_inference()
        query, key = rows().requires_grad_(), rows()
        loss = textbook(query, key, queue.keys)
        expected = gradient(textbook(query, key, queue.keys.clone()), query)
        with context():
            queue.push(rows(3))
            queue.clear()
        queue.push(rows(3))
        torch.testing.assert_close(gradient(loss, query), expected, **EXACT)

    def test_another_thread(self):
        queue, keys = queue_of()
        query, key = rows().requires_grad_(), rows()
        loss = info_nce(query, key, queue.keys, temperature=T)
        thread = threading.Thread(target=queue.push, args=(key.requires_grad_(),))
        thread.start()
        thread.join()
        expected = gradient(textbook(query, key, keys), query)
        torch.testing.assert_close(gradient(loss, query), expected, **EXACT)
        assert torch.equal(queue.keys[-B:], key) and not queue.keys.requires_grad

    def test_compiled(self):
        """Reading is part of the graph, pushing breaks it; nothing is compiled at every step."""
        queue, keys = Queue(K, D, dtype=torch.float64), rows(0)
        graphs = []

        def count(graph, inputs):
            graphs.append(graph)
            return graph

        @torch.compile(backend=count)
        def step(query, key):
            loss = (query * key).sum() + (query @ queue.keys.T).logsumexp(1).sum()
            queue.push(key)
            return loss * 2

        for i in range(16):
            query, key = rows().requires_grad_(), rows()
            expected = 2 * ((query * key).sum() + (query @ keys.T).logsumexp(1).sum())
            loss = step(query, key)
            keys = torch.cat((keys, key))[-K:]
            assert torch.equal(queue.keys, keys)
            if i:
                torch.testing.assert_close(loss, expected, **EXACT)
                expected = gradient(expected, query)
                torch.testing.assert_close(gradient(loss, query), expected, **EXACT)
            if i == 5:
                compiled = len(graphs)
        assert len(graphs) == compiled

    def test_reads_in_one_graph(self):
        queue, keys = queue_of(labels=True)
        read = torch.compile(lambda x: x @ queue.keys.T + queue.labels, backend="eager",
                             fullgraph=True)  # fmt: skip
        x = rows()
        torch.testing.assert_close(read(x), x @ keys.T + torch.arange(K) % 7)
