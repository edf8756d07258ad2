"""Lists of tensors: arguments for encoders that need several, samples for others."""

from functools import partial

import pytest
import torch
from torch import nn

from python_tests.grad_cache.towers import (
    EXACT,
    ROWS,
    WIDTH,
    batch,
    cached,
    encoder,
    gradients,
    loss_function,
)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = encoder()

    def forward(self, x, mask):
        return self.encoder(x * mask)

    def with_default(self, x, mask=None):
        return self.encoder(x if mask is None else x * mask)

    def of_any(self, *arguments):
        return self(*arguments)

    def of_samples(self, samples):
        return self.encoder(torch.stack(samples))


def mask():
    return (torch.rand(ROWS, WIDTH) < 0.7).double()


@pytest.mark.parametrize("form", ["module", "method", "function", "partial", "compiled"])
def test_a_list_of_arguments(form):
    """As luyug's GradCache takes it."""
    model, x, y = Masked(), [batch(), mask()], [batch(), mask()]
    loss_function(model(*x), model(*y)).backward()
    expected = gradients(model)
    encoders = {
        "module": model,
        "method": model.forward,
        "function": lambda x, mask: model(x, mask),
        "partial": partial(lambda model, x, mask: model(x, mask), model),
        "compiled": torch.compile(model, backend="eager"),
    }
    cached(encoders[form])(x, y).backward()
    torch.testing.assert_close(gradients(model), expected, **EXACT)


def test_lists_of_samples():
    """One argument; there are more samples than the second takes; the third are of two lengths."""
    model = Masked()
    x, y = batch(), batch()
    loss_function(model.encoder(x), model.encoder(y)).backward()
    expected = gradients(model)
    cached(model.of_samples)(list(x), list(y)).backward()
    torch.testing.assert_close(gradients(model), expected, **EXACT)

    def optional(samples, factor=1.0):
        return factor * model.of_samples(samples)

    cached(optional)(list(x), list(y)).backward()
    torch.testing.assert_close(gradients(model), expected, **EXACT)
    pair = x[:2]
    loss_function(model.encoder(pair), model.encoder(pair + 1)).backward()
    expected = gradients(model)
    cached(model.of_samples)(list(pair), list(pair + 1)).backward()
    torch.testing.assert_close(gradients(model), expected, **EXACT)
    cached(optional)((list(pair),), (list(pair + 1),)).backward()
    torch.testing.assert_close(gradients(model), expected, **EXACT)

    def ragged(samples, factor=1.0):
        return torch.stack([model.encoder(sample).mean(0) for sample in samples])

    cached(ragged)([batch(3), batch(4)], [batch(2), batch(5)]).backward()


@pytest.mark.parametrize("name", ["with_default", "of_any"])
def test_a_list_that_may_be_either(name):
    model = Masked()
    x = [batch(), mask()]
    message = r"inputs\[1\]: expected a tuple of arguments, or a list of samples in a tuple"
    with pytest.raises(ValueError, match=message):
        cached(model, getattr(model, name))(x, x)
    cached(model, getattr(model, name))(x, tuple(x)).backward()


def test_a_function_without_a_signature():
    linear = nn.Linear(WIDTH, 5).double()
    with pytest.raises(ValueError, match=r"one length, got \[2, 22\]"):
        cached(torch.mul)((list(batch(2)), batch()), [batch(), batch()])
    x, y = batch(), batch()
    cached(lambda x, y: linear(torch.mul(x, y)))([x, y], [y, x + 1]).backward()
    assert linear.weight.grad is not None
