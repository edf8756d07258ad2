"""Encoders and batches that the tests of GradCache share."""

import torch
from torch import nn

from catalogue import textbook
from cl_kernels.grad_cache import GradCache

ROWS, WIDTH, CHUNK = 22, 6, 4  # four chunks of 4 rows, two of 3
EXACT = {"rtol": 1e-12, "atol": 1e-14}


def encoder(dropout=0.0, dtype=torch.float64):
    layers = nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 5)
    return nn.Sequential(*layers).to(dtype)


def batch(rows=ROWS, width=WIDTH):
    return torch.randn(rows, width, dtype=torch.float64)


def cached(*encoders, loss=None, **settings):
    towers = list(encoders) if len(encoders) > 1 else encoders[0]
    return GradCache(towers, loss or loss_function, **{"chunk_size": CHUNK} | settings)


def gradients(*modules):
    """By parameter; they are cleared for the next run."""
    found = [p.grad for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad()
    return found


def in_chunks(module, x, size=CHUNK):
    """Embeddings with their graph, drawing random numbers chunk by chunk as GradCache does."""
    return torch.cat([module(part) for part in x.tensor_split(-(-len(x) // size))])


def loss_function(*embeddings, temperature=0.3):
    first, *others = embeddings
    return sum(textbook.info_nce(first, x, temperature=temperature) for x in others)


class Recorder(nn.Module):
    """Notes how many samples each call encodes, and whether with a graph."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.calls = []

    def forward(self, x):
        self.calls.append((len(x), torch.is_grad_enabled()))
        return self.module(x)
