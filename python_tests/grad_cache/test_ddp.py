"""GradCache with DistributedDataParallel: two processes against one that sees the whole batch."""

import copy
import sys
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from catalogue import textbook
from cl_kernels.grad_cache import GradCache
from python_tests.grad_cache import further_ranks
from python_tests.grad_cache.ranks import (
    EXACT,
    RANKS,
    WIDTH,
    Loss,
    check_gradients,
    data,
    encoder,
    reductions,
    whole_batch,
)

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not dist.is_available(), reason="needs gloo"
)


class Centred(nn.Module):
    """Subtracts a running mean: its embeddings depend on its buffer, that on all it has seen."""

    def __init__(self):
        super().__init__()
        self.encoder = encoder()
        self.register_buffer("center", torch.zeros(WIDTH, dtype=torch.float64))

    def forward(self, x):
        self.center.mul_(0.5).add_(0.5 * x.mean(0))
        return self.encoder(x - self.center)


def shared_encoder(rank):
    """Ranks need not have the same number of chunks."""
    mine, everything = data(rank)
    module, loss = encoder(), Loss()
    expected = whole_batch([module, module], loss, everything)
    ddp, ddp_loss = DDP(module), DDP(loss)
    counted = reductions(ddp)
    GradCache(ddp, ddp_loss, chunk_size=3 + 2 * rank).step(*mine)
    check_gradients([ddp, ddp_loss], expected)
    assert len(counted) == 1


def two_encoders(rank):
    """One in DDP, one that holds DDP."""
    mine, everything = data(rank)
    modules, loss = [encoder(), encoder()], Loss()
    expected = whole_batch(modules, loss, everything)
    first, second = DDP(modules[0]), nn.Sequential(DDP(modules[1]), nn.Identity())
    counted = reductions(first), reductions(second[0])
    GradCache([first, second], DDP(loss), chunk_size=4).step(*mine)
    check_gradients([first, second, loss], expected)
    assert [len(c) for c in counted] == [1, 1]


def accumulation(rank):
    mine, everything = data(rank)
    module, loss = encoder(), Loss()
    expected = whole_batch([module, module], loss, everything)
    ddp, ddp_loss = DDP(module), DDP(loss)
    counted = reductions(ddp)
    cache = GradCache(ddp, ddp_loss, chunk_size=4, accumulation_steps=2)
    with ddp.no_sync(), ddp_loss.no_sync():
        cache.step(*mine)
    assert len(counted) == 0
    cache.step(*mine)
    assert len(counted) == 1
    check_gradients([ddp, ddp_loss], expected)  # twice the same batch, each counted half


def detached_side(rank):
    """The last chunk that has a gradient is not the last chunk."""
    mine, everything = data(rank)
    module, loss = encoder(), Loss()
    single, (x, y) = copy.deepcopy(module), everything
    textbook.info_nce(single(x), single(y).detach(), temperature=0.3).backward()
    ddp = DDP(module)
    counted = reductions(ddp)
    for _ in range(2):
        ddp.zero_grad()
        GradCache(ddp, lambda x, y: loss(x, y.detach()), chunk_size=4, allow_unused=True).step(
            *mine
        )
    check_gradients([ddp], [p.grad for p in single.parameters()])
    assert len(counted) == 2


def buffers(rank):
    """Both encodings begin with the buffers of the first rank, which DDP broadcasts."""
    (x, y), _ = data(rank)
    ddp, loss = DDP(Centred()), Loss()
    cache = GradCache(ddp, loss, chunk_size=5)
    cache.step(x, y)
    twin = copy.deepcopy(ddp.module)
    dist.broadcast(twin.center, src=0)
    ddp.zero_grad()
    twin.zero_grad()
    cache.step(y, x)
    embeddings = [torch.cat([twin(part) for part in side.split(5)]) for side in (y, x)]
    loss(*embeddings).backward()
    for p in twin.parameters():
        dist.all_reduce(p.grad.div_(RANKS))
    check_gradients([ddp], [p.grad for p in twin.parameters()])
    torch.testing.assert_close(ddp.module.center, twin.center, **EXACT)


def static_graph(rank):
    mine, _ = data(rank)
    with pytest.raises(ValueError, match=r"encoders\[0\]: expected .* without static_graph"):
        GradCache(DDP(encoder(), static_graph=True), Loss(), chunk_size=4).step(*mine)


def a_loss_that_is_not_finite(rank):
    """All ranks end, whichever it was, also in a call that reduces nothing; then they go on."""
    (x, y), _ = data(rank)
    ddp = DDP(encoder())
    for bad in (0, 1):
        said = "a finite number, got nan" if rank == bad else f"another on rank {bad}"
        cache = GradCache(ddp, lambda x, y, bad=bad: spoiled(x, y, rank == bad), chunk_size=4)
        for context in (nullcontext(), ddp.no_sync()):
            with context, pytest.raises(FloatingPointError, match=f"loss: expected .*{said}"):
                cache.step(x, y)
            assert all(p.grad is None for p in ddp.parameters())
    shared_encoder(rank)


def spoiled(x, y, really):
    loss = textbook.info_nce(x, y, temperature=0.3)
    return loss * torch.nan if really else loss


SCENARIOS = [
    shared_encoder,
    two_encoders,
    accumulation,
    detached_side,
    buffers,
    static_graph,
    a_loss_that_is_not_finite,
    *further_ranks.SCENARIOS,
]


def process(rank, folder):
    torch.set_num_threads(1)
    store, patience = f"file://{folder}/store", timedelta(minutes=1)  # a hang is a failure
    dist.init_process_group("gloo", store, timeout=patience, rank=rank, world_size=RANKS)
    for scenario in SCENARIOS:
        torch.manual_seed(0)
        scenario(rank)
        dist.barrier()
        (folder / f"{scenario.__name__}-{rank}").touch()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ddp(tmp_path):
    torch.multiprocessing.spawn(process, (tmp_path,), nprocs=RANKS)
    assert len(list(tmp_path.glob("*-*"))) == RANKS * len(SCENARIOS)
