"""GradCache's second encoding: what does not repeat the first is refused, and what it reads."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cl_kernels
from cl_kernels.grad_cache import GradCache
from python_tests.grad_cache.towers import (
    CHUNK,
    ROWS,
    batch,
    encoder,
    gradients,
    loss_function,
)


def test_randomness_that_is_not_replayed():
    module, source = encoder(), np.random.default_rng(0)

    def noisy(x):
        return module(x) * torch.as_tensor(source.uniform(size=(len(x), 1)))

    message = re.escape("encoders[0]: expected the same embeddings from encoding a chunk again")
    with pytest.raises(RuntimeError, match=message):
        GradCache(noisy, loss_function, chunk_size=CHUNK).step(batch(), batch())
    assert gradients(module) == [None] * 4


def test_a_replay_that_is_no_number():
    module, calls = encoder(), []
    first = 2 * -(-ROWS // CHUNK)  # of both inputs

    def broken(x):
        calls.append(len(x))
        whole = module(x)
        return whole if len(calls) <= first else whole * torch.nan

    with pytest.raises(RuntimeError, match="expected the same embeddings"):
        GradCache(broken, loss_function, chunk_size=CHUNK).step(batch(), batch())


def test_a_step_reads_nothing_back_from_its_device():
    """As on a GPU, where that would wait: what is on the meta device cannot be read."""
    module = encoder(dropout=0.3)
    cache = GradCache(module, cl_kernels.nt_xent, chunk_size=CHUNK)
    cache.step(batch(), batch())  # the first time it is checked that encodings repeat themselves
    module.to("meta")
    x, y = batch().to("meta"), batch().to("meta")
    assert cache.step(x, y).is_meta and all(g.is_meta for g in gradients(module))
    unreadable = pytest.raises(RuntimeError, match="on meta tensors")
    with cl_kernels.debug_checks(), unreadable:
        cache.step(x, y)
    with unreadable:
        GradCache(module, cl_kernels.nt_xent, chunk_size=CHUNK).step(x, y)


def test_an_interruption_leaves_random_state_and_missing_gradients_as_before():
    module, calls = encoder(dropout=0.5), []

    def interrupted(x):
        calls.append(x)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return module(x)

    x = batch()
    expected = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        GradCache(interrupted, lambda x: F.normalize(x).sum(), chunk_size=CHUNK).step(x)
    assert torch.equal(torch.get_rng_state(), expected)
