"""Rows for losses of one's own, and what goes round in a ring."""

import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import cl_kernels as cl
from catalogue import textbook
from cl_kernels.distributed import gather_rows
from cl_kernels.ranks.group import Ranks
from python_tests.distributed.cases import CASES, Data
from python_tests.distributed.processes import needs_gloo, run

pytestmark = needs_gloo

MEGABYTE = 2**20


def own_loss(rank, sizes):
    data, ranks = Data.random(sizes), len(sizes)
    mine, whole = data.of(rank), data.with_leaves()
    first, second, labels = gather_rows(mine.first, mine.second, mine.labels)
    assert torch.equal(labels, data.labels) and torch.equal(first, data.first)
    textbook.info_nce(first, second, temperature=0.5).backward()
    textbook.info_nce(whole.first, whole.second, temperature=0.5).backward()
    for got, exact in ((mine.first, whole.first), (mine.second, whole.second)):
        torch.testing.assert_close(got.grad / ranks, exact.grad[data.rows_of(rank)])
    half = data.first.bfloat16()[data.rows_of(rank)]
    (wide,) = gather_rows(half)
    assert wide.dtype == torch.float32 and torch.equal(wide, data.first.bfloat16().float())
    (nothing,) = gather_rows(mine.first[:0])
    assert nothing.shape == (0, data.first.shape[1])
    with pytest.raises(ValueError, match=r"^tensors"):
        gather_rows(mine.first[:, : 4 + rank])
    with pytest.raises((TypeError, ValueError), match=r"^tensors"):
        gather_rows([1.0] if rank else mine.first)


class Watched:
    """What ``pass_on`` sends, and how much of what it received is alive."""

    def __init__(self, monkeypatch):
        self.sent, self.alive, self.most, original = 0, [], 0, Ranks.pass_on

        def pass_on(ranks, tensors, rows):
            self.sent += sum(x.numel() * x.element_size() for x in tensors)
            wait = original(ranks, tensors, rows)

            def watched():
                received = wait()
                self.alive += [weakref.ref(x) for x in received if x.dim() == 2]
                self.most = max(self.most, sum(x() is not None for x in self.alive))
                return received

            return watched

        monkeypatch.setattr(Ranks, "pass_on", pass_on)


def in_a_ring(rank, sizes):
    """Forward: every rank's keys but the last in the round, with their ids, in the type of the
    products, and the sums of their columns; back the same with the keys' gradients."""
    data, ranks = Data.random(sizes, torch.bfloat16), len(sizes)
    mine = data.of(rank)
    with pytest.MonkeyPatch.context() as monkeypatch:
        watched = Watched(monkeypatch)
        losses = CASES["clip"].call(mine, gather="ring", reduction="none")
        D = data.first.shape[1]
        of_shards = sum(n * (2 * D + 8) for r, n in enumerate(sizes) if r != (rank + 1) % ranks)
        others = sum(n for r, n in enumerate(sizes) if r != rank)
        of_sums = others * 4
        forward = of_shards + of_sums
        assert watched.sent == forward
        # Beside this rank's own: those that are visited, and those that arrive meanwhile.
        assert watched.most <= min(ranks - 1, 2)
        losses.sum().backward()
        of_columns = 8 * (sum(sizes) - sizes[(rank + 1) % ranks])
        both = forward + of_shards + of_columns + others * 4 * D
        assert watched.sent == both
        watched.sent = 0
        CASES["clip"].call(mine, gather="ring").backward()  # all of it made in the forward pass
        assert watched.sent == both


def embeddings_stay(rank, sizes):
    """Whatever the loss, no rank asks for the embeddings of all."""
    data, original = Data.random(sizes), Ranks.all

    def watched(ranks, x):
        gathered = original(ranks, x)
        large = gathered.is_floating_point() and gathered.numel() >= data.first.numel()
        assert not large, f"{list(gathered.shape)} of {data.first.shape}"
        return gathered

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Ranks, "all", watched)
        with pytest.raises(AssertionError):
            CASES["clip"].call(data.of(rank), gather="all")
        for case in CASES.values():
            case.call(data.of(rank), gather="ring").backward()


def two(rank):
    own_loss(rank, [4, 7])
    embeddings_stay(rank, [4, 7])
    in_a_ring(rank, [4, 7])


def test_with_two_ranks():
    run(two, 2)


def test_with_three_ranks():
    run(in_a_ring, 3, [4, 0, 6])


def memory_of(rank, rows, dim):
    """Bytes at the highest: beyond the embeddings, alone and in a ring."""

    def resident(field):
        (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if field in x]
        return int(line.split()[1]) * 1024

    first, second = (torch.randn(rows, dim) for _ in range(2))
    small = first[:256].contiguous(), second[:256].contiguous()
    found = []
    for options in ({}, {"gather": "ring"}):
        cl.clip(*small, 5.0, normalize=True, **options)
        Path("/proc/self/clear_refs").write_text("5")  # the highest is the present again
        before = resident("VmRSS:")
        cl.clip(first, second, 5.0, normalize=True, **options)
        found.append(resident("VmHWM:") - before)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_ring_holds_one_shard_more():
    rows, dim = 4096, 2048
    shard = rows * dim * 4
    for alone, ring in run(memory_of, 2, rows, dim):
        assert ring <= alone + shard + 8 * MEGABYTE, f"{alone / MEGABYTE}, {ring / MEGABYTE}"


def test_alone():
    x = torch.randn(3, 4).bfloat16()
    assert torch.equal(gather_rows(x)[0], x.float())
    with pytest.raises(TypeError, match="tensors: expected tensors, got int"):
        gather_rows(3)
    assert not dist.is_initialized() and cl.distributed.gather_rows is gather_rows
