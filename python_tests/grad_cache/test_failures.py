"""A step of GradCache that fails leaves all as it was; a graph above inputs is passed once."""

import copy

import pytest
import torch
from torch import nn

from cl_kernels import CSR
from cl_kernels.grad_cache import GradCache
from python_tests.grad_cache.towers import (
    CHUNK,
    EXACT,
    ROWS,
    WIDTH,
    batch,
    encoder,
    gradients,
    loss_function,
)

CHUNKS = -(-ROWS // CHUNK)  # of one input


class Failing(nn.Module):
    """Fails in one of its calls, when it has changed a buffer and drawn a number already."""

    def __init__(self, call, error):
        super().__init__()
        self.encoder = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), encoder()).double()
        self.calls, self.call, self.error = 0, call, error

    def forward(self, x):
        x = self.encoder(x)
        self.calls += 1
        if self.calls == self.call:
            raise self.error
        return x


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("call", [1, CHUNKS + 2, 2 * CHUNKS + 1, 3 * CHUNKS + 2])
def test_an_encoder_that_fails_in_either_pass(call, error):
    module, x, y = Failing(call, error), batch().requires_grad_(), batch()
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    buffers, random_state = copy.deepcopy(dict(module.named_buffers())), torch.get_rng_state()
    objects = [id(buffer) for buffer in module.buffers()]
    with pytest.raises(type(error)):
        GradCache(module, loss_function, chunk_size=CHUNK).step(x, y, temperature=scale)
    torch.testing.assert_close(dict(module.named_buffers()), buffers, rtol=0, atol=0)
    assert [id(buffer) for buffer in module.buffers()] == objects
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in (*module.parameters(), x, scale))
    assert module.training and all(part.training for part in module.modules())


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("call", [2 * CHUNKS + 1, 3 * CHUNKS + 2])
def test_a_backward_pass_that_fails(error, call):
    """Buffers and random numbers are as it found them, whatever came in between."""
    module, x, y = Failing(call, error), batch().requires_grad_(), batch()
    loss = GradCache(module, loss_function, chunk_size=CHUNK)(x, y)
    module.encoder[0](batch())
    torch.rand(3)
    buffers, random_state = copy.deepcopy(dict(module.named_buffers())), torch.get_rng_state()
    with pytest.raises(type(error)):
        loss.backward()
    torch.testing.assert_close(dict(module.named_buffers()), buffers, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in (*module.parameters(), x))
    with pytest.raises(RuntimeError):
        loss.backward()


def test_a_backward_pass_of_a_function_that_fails():
    """Its parameters are known from its graph."""
    module = Failing(CHUNKS + 2, ZeroDivisionError())
    loss = GradCache(lambda x: module(x), lambda x: x.sum(), chunk_size=CHUNK)(batch())
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    assert gradients(module) == [None] * len(list(module.parameters()))


def test_without_grad_a_failure_is_undone_as_well():
    module, x = Failing(CHUNKS, ZeroDivisionError()), batch()
    buffers, random_state = copy.deepcopy(dict(module.named_buffers())), torch.get_rng_state()
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        GradCache(module, loss_function, chunk_size=CHUNK).step(x)
    torch.testing.assert_close(dict(module.named_buffers()), buffers, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_gradients_that_were_there_stay():
    module = Failing(2 * CHUNKS, ZeroDivisionError())  # the second pass, before the last chunk
    before = [torch.ones_like(p) for p in module.parameters()]
    for p, grad in zip(module.parameters(), before, strict=True):
        p.grad = grad
    with pytest.raises(ZeroDivisionError):
        GradCache(module, lambda x: x.sum(), chunk_size=CHUNK).step(batch())
    assert all(p.grad is g for p, g in zip(module.parameters(), before, strict=True))


def test_a_step_after_a_failed_one_is_as_the_first_would_have_been():
    module, x, y = Failing(CHUNKS + 1, ZeroDivisionError()), batch(), batch()
    twin = copy.deepcopy(module)
    twin.call = None
    torch.manual_seed(5)
    GradCache(twin, loss_function, chunk_size=CHUNK).step(x, y)
    torch.manual_seed(5)
    cache = GradCache(module, loss_function, chunk_size=CHUNK)
    with pytest.raises(ZeroDivisionError):
        cache.step(x, y)
    cache.step(x, y)
    torch.testing.assert_close(gradients(module), gradients(twin), **EXACT)


# Graphs above the inputs


class Trunk(nn.Module):
    """Counts the backward passes through it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH).double()
        self.passes = 0

    def forward(self, x):
        x = self.layer(x).tanh()
        x.register_hook(self._count)
        return x

    def _count(self, _):
        self.passes += 1


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping", "list"])
def test_gradients_pass_once_through_the_graph_above(form):
    """Also where two inputs are one tensor, and where a keyword argument has the same graph."""
    trunk, module, y = Trunk(), encoder(), batch()

    def encode(x):
        return module(torch.stack(x) if isinstance(x, list) else x)

    def inputs_and_scale():
        x = trunk(y)
        return x, x.square().mean()

    x, scale = inputs_and_scale()
    loss_function(module(x), module(x), module(y), temperature=scale).backward()
    expected = gradients(trunk, module)
    trunk.passes = 0
    x, scale = inputs_and_scale()
    given = {"tensor": x, "tuple": (x,), "mapping": {"x": x}, "list": list(x.unbind())}[form]
    GradCache(encode, loss_function, chunk_size=CHUNK).step(given, given, y, temperature=scale)
    torch.testing.assert_close(gradients(trunk, module), expected, **EXACT)
    assert trunk.passes == 1


def test_keyword_arguments_of_the_loss_keep_their_type():
    trunk, module, y = Trunk(), encoder(), batch()
    lists = CSR(torch.arange(ROWS + 1), torch.arange(ROWS))

    def loss(x, positives, weight):
        assert positives is lists
        return (weight * x).sum()

    loss(module(y), lists, trunk(y)[:, :5]).backward()
    expected = gradients(trunk, module)
    GradCache(module, loss, chunk_size=CHUNK).step(y, positives=lists, weight=trunk(y)[:, :5])
    torch.testing.assert_close(gradients(trunk, module), expected, **EXACT)


def test_a_frozen_encoder_on_top_of_a_trained_trunk():
    trunk, module, y = Trunk(), encoder().requires_grad_(False), batch()
    loss_function(module(trunk(y)), module(y)).backward()
    expected = gradients(trunk)
    GradCache(module, loss_function, chunk_size=CHUNK).step(trunk(y), y)
    torch.testing.assert_close(gradients(trunk), expected, **EXACT)


def test_a_failed_step_sends_nothing_into_the_graph_above():
    trunk, module = Trunk(), Failing(2 * CHUNKS, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        GradCache(module, lambda x: x.sum(), chunk_size=CHUNK).step(trunk(batch()))
    assert trunk.passes == 0 and gradients(trunk) == [None, None]
