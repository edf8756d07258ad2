"""Two processes: what all ranks push, and what they are told before they would wait in vain."""

import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from cl_kernels import PairFilter, info_nce
from cl_kernels.memory import MemoryBank, MomentumEncoder, Queue

RANKS, WIDTH = 2, 4

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not dist.is_available(), reason="needs gloo"
)


def rows_of(counts, seed, dtype=torch.float32):
    """Of each rank, the same on every one."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, WIDTH, generator=generator).to(dtype) for n in counts]


def alike(x):
    """Whether all ranks have the same bits."""
    everyone = [torch.empty_like(x) for _ in range(RANKS)]
    dist.all_gather(everyone, x.contiguous())
    return all(torch.equal(x, other) for other in everyone)


def all_keys_in_the_order_of_ranks(rank):
    queue, expected = Queue(10, WIDTH, labels=True), torch.empty(0, WIDTH)
    for step, counts in enumerate([(2, 3), (0, 4), (0, 0), (1, 1), (30, 2), (3, 0), (4, 4)]):
        keys = rows_of(counts, step)
        ids = [10 * torch.arange(n) + r for r, n in enumerate(counts)]
        queue.push(keys[rank].requires_grad_(rank == 0), ids[rank], gather=True)
        expected = torch.cat((expected, *keys))[-10:].detach()
        assert torch.equal(queue.keys, expected)
    assert queue.labels[-8:].tolist() == [0, 10, 20, 30, 1, 11, 21, 31]
    half = Queue(10, WIDTH, dtype=torch.bfloat16)
    keys = rows_of((3, 2), 9)
    half.push(keys[rank], gather=True)
    assert torch.equal(half.keys, torch.cat(keys).bfloat16())


def a_sample_that_several_ranks_hold(rank):
    queue = Queue(10, WIDTH, labels=True)
    keys = rows_of((4, 3), 1)
    ids = torch.tensor([5, 6, 5, 7]), torch.tensor([8, 6, 6])
    queue.push(keys[rank], ids[rank], gather=True, unique=True)
    assert queue.labels.tolist() == [5, 7, 8, 6]
    assert torch.equal(queue.keys, torch.stack([keys[0][2], keys[0][3], keys[1][0], keys[1][2]]))
    queue.push(keys[rank], ids[rank], gather=True)
    assert len(queue) == 10 and alike(queue.keys)


def one_loss_of_all(rank):
    """Gradients of the loss of all ranks' queries against a queue that is alike on all."""
    queue = Queue(8, WIDTH, labels=True)
    queries, keys = rows_of((3, 3), 2), rows_of((3, 3), 3)
    ids = torch.arange(3) + rank
    queue.push(keys[rank], ids, gather=True)
    everything = torch.cat(queries).requires_grad_()
    of_all = torch.cat((torch.arange(3), torch.arange(3) + 1))
    others = PairFilter(of_all, queue.labels, "different")
    expected = info_nce(everything, torch.cat(keys), queue.keys, negative_where=others)
    (gradient,) = torch.autograd.grad(expected, everything)
    own = queries[rank].requires_grad_()
    others = PairFilter(ids, queue.labels, "different")
    loss = info_nce(own, keys[rank], queue.keys, negative_where=others, gather="all")
    queue.push(keys[rank], ids, gather=True)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(own.grad / RANKS, gradient[3 * rank :][:3])


def disagreements(rank):
    """All are told, and all queues are as they were; the next call works."""
    first = rank == 0
    keys, ids = torch.randn(2, WIDTH), torch.arange(2)

    def labelled(**options):
        queue = Queue(8, WIDTH, labels=True, **options)
        queue.push(rows_of((2,), 4)[0], ids)
        return queue

    def refused(message, queue, *arguments, **options):
        before = queue.keys.clone()
        with pytest.raises((ValueError, TypeError), match=message):
            queue.push(*arguments, gather=True, **options)
        assert torch.equal(queue.keys, before)

    theirs = "keys: expected the same on every rank"
    own = theirs if first else "keys: expected the width of the queue, 4, got 3"
    refused(own, labelled(), keys if first else torch.randn(2, 3), ids)
    own = theirs if first else "keys: expected a tensor, got NoneType"
    refused(own, labelled(), keys if first else None, ids)
    refused("keys: expected the same.*rank", labelled(), keys.double() if first else keys, ids)
    refused("labels: expected", labelled(), keys, ids if first else None)
    refused("labels: expected the same", labelled(), keys, ids if first else ids.int())
    refused("unique: expected the same", labelled(), keys, ids, unique=first)
    refused("unique: expected", labelled(), keys, ids, unique=True if first else 1)
    refused("queue: expected the same", labelled(dtype=torch.float16 if first else torch.float32),
            keys, ids)  # fmt: skip
    refused("queue: expected the same", Queue(8 + rank, WIDTH), keys)
    wide = Queue(8, WIDTH + rank)
    refused("keys: expected the same", wide, torch.randn(2, WIDTH + rank))
    without = Queue(8, WIDTH) if first else Queue(8, WIDTH, labels=True)
    refused("labels: expected the same", without, keys, None if first else ids)
    ahead = Queue(8, WIDTH)
    if first:
        ahead.push(keys)
    refused("queue: expected the same on every rank, got .* of 8 keys", ahead, keys)
    refused("keys: expected one of", labelled(), ids[:, None], ids)
    bank = MemoryBank(5, WIDTH, momentum=0.5 if first else 0.6)
    with pytest.raises(ValueError, match="momentum: expected the same"):
        bank.update(ids, keys, gather=True)
    bank = MemoryBank(5, WIDTH)
    with pytest.raises(ValueError, match=r"indices: expected"):
        bank.update(ids if first else ids + 4, keys, gather=True)
    assert len(bank) == 0
    queue = labelled()
    queue.push(keys, ids, gather=True)
    assert len(queue) == 6


def groups(rank):
    """Of one process, of others, destroyed."""
    each = [dist.new_group([r]) for r in range(RANKS)]
    queue, keys = Queue(8, WIDTH), torch.randn(2, WIDTH)
    queue.push(keys, group=each[rank], gather=True)
    assert torch.equal(queue.keys, keys)
    with pytest.raises(ValueError, match="group: expected one that this process is in"):
        queue.push(keys, group=each[1 - rank], gather=True)
    both = dist.new_group([0, 1])
    queue.push(keys, group=both, gather=True)
    assert len(queue) == 6
    dist.destroy_process_group(both)
    with pytest.raises(ValueError, match="group: expected a living one, got one that was destr"):
        queue.push(keys, group=both, gather=True)
    assert len(queue) == 6


def a_bank_of_all(rank):
    """Of an instance that several ranks have, the last one's counts."""
    bank, single = MemoryBank(9, WIDTH), MemoryBank(9, WIDTH)
    for step, counts in enumerate([(2, 3), (4, 0), (0, 0), (3, 3)]):
        x = rows_of(counts, step)
        generator = torch.Generator().manual_seed(step)
        indices = [torch.randint(0, 9, (n,), generator=generator) for n in counts]
        bank.update(indices[rank], x[rank], gather=True)
        single.update(torch.cat(indices), torch.cat(x))
        assert torch.equal(bank.keys, single.keys) and torch.equal(bank.indices, single.indices)


class Moco(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, WIDTH))
        self.momentum_encoder = MomentumEncoder(self.encoder, 0.9)
        self.queue = Queue(16, WIDTH)

    def forward(self, x, y, gather):
        query, key = self.encoder(x), self.momentum_encoder(y)
        loss = info_nce(query, key, self.queue.keys)
        self.queue.push(key, gather=gather)
        return loss


def in_ddp(rank):
    """Queues of each rank are left alone, those of all stay alike; followers follow."""
    generator = torch.Generator().manual_seed(rank)
    for gather in (True, False):
        torch.manual_seed(0)
        model = Moco()
        ddp = DDP(model)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for _ in range(4):
            x, y = torch.randn(2, 5, WIDTH, generator=generator)
            optimizer.zero_grad()
            ddp(x, y, gather).backward()
            optimizer.step()
            old = [p.clone() for p in model.momentum_encoder.parameters()]
            model.momentum_encoder.update()
            expected = [0.9 * p + 0.1 * q for p, q in
                        zip(old, model.encoder.parameters(), strict=True)]  # fmt: skip
            torch.testing.assert_close(list(model.momentum_encoder.parameters()), expected)
        assert alike(model.queue.keys) == gather and model.queue.full
        assert all(alike(p) for p in model.parameters())
        assert not any(torch.equal(p, q) for p, q in zip(old, expected, strict=True))


def a_copy_of_ddp(rank):
    encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), DDP(nn.Linear(WIDTH, WIDTH)))
    follower = MomentumEncoder(DDP(encoder), 0.0)
    assert not any(isinstance(m, DDP) for m in follower.modules())
    with torch.no_grad():
        encoder[1].module.weight.fill_(2)
    follower.update()
    assert (follower.module[1].weight == 2).all()


SCENARIOS = [
    all_keys_in_the_order_of_ranks,
    a_sample_that_several_ranks_hold,
    one_loss_of_all,
    disagreements,
    groups,
    a_bank_of_all,
    in_ddp,
    a_copy_of_ddp,
]


def process(rank, folder):
    torch.set_num_threads(1)
    store, patience = f"file://{folder}/store", timedelta(seconds=30)  # a hang is a failure
    dist.init_process_group("gloo", store, timeout=patience, rank=rank, world_size=RANKS)
    for scenario in SCENARIOS:
        torch.manual_seed(0)
        scenario(rank)
        dist.barrier()
        (folder / f"{scenario.__name__}-{rank}").touch()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks(tmp_path):
    torch.multiprocessing.spawn(process, (tmp_path,), nprocs=RANKS)
    assert len(list(tmp_path.glob("*-*"))) == RANKS * len(SCENARIOS)
