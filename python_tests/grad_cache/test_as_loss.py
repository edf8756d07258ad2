"""GradCache as a loss module, by itself; test_trainers.py has those that call it."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import cl_kernels
from cl_kernels.grad_cache import GradCache
from python_tests.grad_cache.towers import (
    CHUNK,
    EXACT,
    ROWS,
    Recorder,
    batch,
    encoder,
    gradients,
    loss_function,
)


class Features(nn.Module):
    """Called as models of sentence-transformers are."""

    def __init__(self):
        super().__init__()
        self.encoder = encoder()

    def forward(self, features):
        assert isinstance(features["prompt"], str)
        return features | {"sentence_embedding": self.encoder(features["x"])}


@pytest.mark.parametrize("form", ["features", "tensors", "samples", "embed"])
def test_what_models_are_called_with(form):
    x, y = batch(), batch()
    module = encoder()
    loss_function(module(x), module(y)).backward()
    expected, model, settings = gradients(module), module, {}
    batches = [x, y]
    if form == "features":
        model = Features()
        model.encoder = module
        batches = [{"x": part, "prompt": "query: "} for part in (x, y)]
    elif form == "samples":
        model = nn.Sequential(module)
        model.forward = lambda samples: module(torch.stack(samples))
        batches = [list(part) for part in (x, y)]
    elif form == "embed":
        settings["embed"] = lambda model, batch: model(batch[0] + batch[1])
        batches = [(x, 0 * x), (0 * y, y)]
    loss = GradCache.as_loss(loss_function, model, chunk_size=CHUNK, **settings)
    loss(batches).backward()
    torch.testing.assert_close(gradients(module), expected, **EXACT)


def test_parameters_models_and_labels():
    """The model may come with a call, or be set anew by a trainer that wraps it."""
    module, other, x = encoder(), encoder(), batch()
    temperature = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    loss = GradCache.as_loss(cl_kernels.NTXentLoss(temperature), chunk_size=CHUNK)
    assert [name for name, _ in loss.named_parameters()] == ["loss.temperature"]
    loss([x, x + 1], model=module).backward()
    expected = gradients(module), temperature.grad
    temperature.grad = None
    loss.model = nn.Sequential(module)
    assert len(list(loss.parameters())) == 5
    copy.deepcopy(loss)([x, x + 1]).backward()
    assert gradients(module) == [None] * 4 and temperature.grad is None
    loss([x, x + 1]).backward()
    torch.testing.assert_close((gradients(module), temperature.grad), expected, **EXACT)
    loss([x, x + 1], None, model=other).backward()
    torch.testing.assert_close(gradients(module, other)[:4], [None] * 4)

    labels = torch.randint(3, (ROWS,))
    cl_kernels.supcon(module(x), labels).backward()
    expected = gradients(module)
    GradCache.as_loss(cl_kernels.SupConLoss(), module, chunk_size=CHUNK)([x], labels).backward()
    torch.testing.assert_close(gradients(module), expected, rtol=1e-10, atol=1e-13)


def test_evaluation():
    module, x = Recorder(encoder()), batch()
    loss = GradCache.as_loss(loss_function, module, chunk_size=CHUNK).eval()
    with torch.no_grad():
        torch.testing.assert_close(loss([x, x]), loss_function(module(x), module(x)), **EXACT)


def test_partials_of_functions_and_modules():
    """Their modules are known, as of bound methods: buffers pass through the same values."""
    first, second = (nn.Sequential(nn.BatchNorm1d(6), encoder()).double() for _ in range(2))

    def encode(x, first, *, second):
        return first(x) + second(x)

    function = partial(encode, first=first, second=second)
    x, y = batch(), batch()
    GradCache(function, loss_function, chunk_size=ROWS)(x, y).backward()
    assert first[0].num_batches_tracked == second[0].num_batches_tracked == 2
    expected = gradients(first, second)
    loss_function(function(x), function(y)).backward()
    torch.testing.assert_close(gradients(first, second), expected, **EXACT)


BAD = {
    "settings": (lambda loss: GradCache.as_loss(loss, scaler=1), TypeError, "scaler: expected the"),
    "get_embedding": (
        lambda loss: GradCache.as_loss(loss, get_embedding=len), TypeError, "expected embed",
    ),
    "chunks": (lambda loss: GradCache.as_loss(loss), ValueError, "chunk_size: expected a number"),
    "embed": (
        lambda loss: GradCache.as_loss(loss, chunk_size=2, embed=3), TypeError, "embed: expected",
    ),
    "loss": (lambda loss: GradCache.as_loss(1.0, chunk_size=2), TypeError, "loss: expected a call"),
    "inputs": (
        lambda loss: GradCache.as_loss(loss, encoder(), chunk_size=2)(batch()),
        TypeError, "inputs: expected a list of batches, got Tensor",
    ),
    "no model": (
        lambda loss: GradCache.as_loss(loss, chunk_size=2)([batch()]),
        ValueError, "model: expected",
    ),
    "outputs": (
        lambda loss: GradCache.as_loss(loss, lambda x: {"a": x}, chunk_size=2)([batch()]),
        TypeError, "embed: expected .* dict without 'sentence_embedding'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refusals(case):
    act, error, message = BAD[case]
    with pytest.raises(error, match=message):
        act(loss_function)
