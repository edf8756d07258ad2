"""Two processes, each with its rows of a batch, against one that sees all of it."""

import copy

import torch
import torch.distributed as dist
from torch import nn

from catalogue import textbook

RANKS, ROWS, WIDTH = 2, 10, 6  # rows of each rank
EXACT = {"rtol": 1e-11, "atol": 1e-14}


def encoder():
    return nn.Sequential(nn.Linear(WIDTH, 12), nn.Tanh(), nn.Linear(12, 5)).double()


class AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(RANKS)]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        dist.all_reduce(grad)
        return grad[dist.get_rank() * ROWS :][:ROWS]


class Loss(nn.Module):
    """InfoNCE on the embeddings of all ranks, with a learned temperature."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x, y):
        x, y = AllGather.apply(x), AllGather.apply(y)
        return textbook.info_nce(x, y, temperature=self.temperature)


def data(rank):
    """This rank's rows, and those of all ranks."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, RANKS * ROWS, WIDTH, dtype=torch.float64, generator=generator)
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    return (x[mine], y[mine]), (x, y)


def whole_batch(encoders, loss, inputs):
    """Gradients of one process that holds all the rows."""
    encoders, loss = copy.deepcopy((encoders, loss))
    x, y = (f(x) for f, x in zip(encoders, inputs, strict=True))
    textbook.info_nce(x, y, temperature=loss.temperature).backward()
    return [p.grad for module in (*dict.fromkeys(encoders), loss) for p in module.parameters()]


def reductions(ddp):
    """Grows by one name whenever a bucket of gradients is reduced."""
    counted = []

    def hook(_, bucket):
        counted.append(bucket.index())
        work = dist.all_reduce(bucket.buffer().div_(RANKS), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    ddp.register_comm_hook(None, hook)
    return counted


def check_gradients(modules, expected):
    got = [p.grad for module in modules for p in module.parameters()]
    torch.testing.assert_close(got, expected, **EXACT)
