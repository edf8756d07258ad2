"""What the loss of a call of GradCache refuses, and that it is not forgotten."""

import copy
import warnings
import weakref

import pytest
import torch
from torch import nn

from cl_kernels import GradCache, clip
from python_tests.grad_cache.towers import (
    EXACT,
    batch,
    cached,
    encoder,
    gradients,
    loss_function,
)


def forgotten(act):
    """Whether something warns of a loss without a backward pass."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [w for w in caught if "dropped without backward" in str(w.message)]


# What is refused


def test_a_second_backward_pass():
    module, calls = encoder(), batch()
    loss = cached(module, loss=lambda x, y: (x * y).sum())(calls, calls)
    loss.backward(retain_graph=True)
    expected = gradients(module)
    assert expected[0] is not None
    with pytest.raises(RuntimeError, match="loss: expected one backward pass, got a second"):
        loss.backward()
    assert gradients(module) == [None] * 4


REFUSED = {
    "autograd.grad": lambda loss, x: torch.autograd.grad(loss, x),
    "inputs": lambda loss, x: loss.backward(inputs=[x]),
    "create_graph": lambda loss, x: loss.backward(create_graph=True),
}


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("how", REFUSED)
def test_other_ways_to_a_gradient(how):
    module, x = encoder(), batch().requires_grad_()
    loss = cached(module, loss=lambda x, y: (x * y).sum())(x, x)
    message = (
        "without create_graph=True" if how == "create_graph" else r"expected loss.backward\(\)"
    )
    with pytest.raises(RuntimeError, match=message):
        REFUSED[how](loss, x)
    assert gradients(module) == [None] * 4 and x.grad is None


@pytest.mark.parametrize("part", [None, "contrast"])
@pytest.mark.parametrize("how", ["autograd.grad", "inputs"])
def test_a_gradient_of_the_loss_alone(how, part):
    """The pass would not come by the embeddings."""
    module, x, scale = encoder(), batch(), torch.tensor(3.0, requires_grad=True)

    def scaled(a, b):
        loss = clip(a, b, scale)
        return loss if part is None else {part: loss}

    loss = GradCache(module, scaled, chunk_size=2)(x, x)
    loss = loss if part is None else loss[part]
    with pytest.raises(RuntimeError, match=r"loss: expected loss\.backward"):
        REFUSED[how](loss, scale)
    assert scale.grad is None
    loss.backward()
    assert scale.grad is not None and None not in gradients(module)


def test_gradients_of_parameters_only_are_refused_by_torch():
    module, x = encoder(), batch()
    loss = cached(module)(x, x)
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        torch.autograd.grad(loss, list(module.parameters()))
    loss.backward()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("what", ["weight", "input"])
def test_what_changes_in_between(what, known):
    module, x, y = encoder(), batch(), batch()
    loss = cached(module if known else lambda x: module(x))(x, y)
    with torch.no_grad():
        (module[0].weight if what == "weight" else y).mul_(2)
    name = r"inputs\[1\]" if what == "input" else r"encoders\[0\]: (parameter '0.weight'|a param)"
    with pytest.raises(RuntimeError, match=f"{name}.*: expected as it was when the loss"):
        loss.backward()
    assert gradients(module) == [None] * 4


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("form", ["foreach", "fused"])
def test_a_step_of_an_optimizer_in_between(optimizer, form):
    module, x = encoder(), batch()
    module(x).sum().backward()
    loss = cached(module)(x, x)
    other = optimizer(encoder().parameters(), lr=0.1)
    own = optimizer(module.parameters(), lr=1e-9, **{form: True})
    other.step()
    own.step()
    with pytest.raises(RuntimeError, match=f"encoders: expected .* a step of {optimizer.__name__}"):
        loss.backward()
    own.zero_grad()
    loss = cached(module)(x, x)
    other.step()
    own.step()  # without gradients it changes nothing
    loss.backward()


def test_a_sample_that_changes_in_between():
    module, samples = encoder(), list(batch())
    loss = cached(lambda samples: module(torch.stack(samples)))(samples, list(batch()))
    samples[7].zero_()
    with pytest.raises(RuntimeError, match=r"inputs\[0\]: expected as it was"):
        loss.backward()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.critic = encoder(), encoder()

    def forward(self, x):
        return self.encoder(x)

    def encode(self, x):
        return self.encoder(x)


def test_other_parts_of_a_model_may_change_in_between():
    """Where a method is the encoder; of a module all parts count."""
    model, x = Model(), batch()
    model.critic(x).sum().backward()
    optimizer = torch.optim.Adam(model.critic.parameters(), fused=True)
    loss = cached(model.encode)(x, x)
    optimizer.step()
    loss.backward()
    assert model.encoder[0].weight.grad is not None
    loss = cached(model)(x, x)
    with torch.no_grad():
        model.critic[0].bias.add_(1)
    with pytest.raises(RuntimeError, match=r"encoders\[0\]: parameter 'critic.0.bias': exp"):
        loss.backward()


def test_a_frozen_tower_may_change_in_between():
    """As a momentum encoder does: it is not encoded again."""
    module, target, x, y = encoder(), encoder().requires_grad_(False), batch(), batch()
    loss_function(module(x), target(y)).backward()
    expected = gradients(module)
    loss = cached(module, target)(x, y)
    target[0].weight.mul_(0.9)
    loss.backward()
    torch.testing.assert_close(gradients(module), expected, **EXACT)


UNUSED = {
    "one": (lambda x, y, z: loss_function(x, z), r"inputs\[1\]: expected to be used"),
    "two": (lambda x, y, z: loss_function(x, x), r"inputs\[1\], inputs\[2\]: expected"),
    "detached": (lambda x, y, z: loss_function(x, y, z.detach()), r"inputs\[2\]: expected"),
    "all": (lambda x, y, z: nn.Parameter(torch.ones(())) * 2, r"inputs\[0\], .* inputs\[2\]: exp"),
}


@pytest.mark.parametrize("case", UNUSED)
def test_inputs_that_the_loss_does_not_use(case):
    loss, message = UNUSED[case]
    module, other, inputs = encoder(), encoder(), [batch() for _ in range(3)]
    towers = [module, other, module]
    with pytest.raises(ValueError, match=message):
        cached(*towers, loss=loss)(*inputs).backward()
    with pytest.raises(ValueError, match=message):
        cached(*towers, loss=loss).step(*inputs)
    assert gradients(module, other) == [None] * 8
    cached(*towers, loss=loss, allow_unused=True).step(*inputs)
    if case == "one":
        frozen = copy.deepcopy(other).requires_grad_(False)
        cached(module, frozen, module, loss=loss).step(*inputs)
        cached(module, torch.no_grad()(other), module, loss=loss).step(*inputs)


def test_a_part_of_a_loss_that_does_not_reach_the_embeddings():
    weight = nn.Parameter(torch.ones(()))
    cache = cached(encoder(), loss=lambda x, y: {"loss": 2 * weight, "rest": (x * y).sum()})
    with pytest.raises(ValueError, match=r"inputs\[0\], inputs\[1\]: expected to be used"):
        cache.step(batch(), batch())


@pytest.mark.parametrize(
    "settings", [{"accumulation_steps": 2}, {"scaler": torch.amp.GradScaler("cpu")}]
)
def test_settings_that_only_a_step_uses(settings):
    module, x = encoder(), batch()
    cache = cached(module, **settings)
    with pytest.raises(ValueError, match=rf"{next(iter(settings))}: expected .*; cache.step"):
        cache(x, x)
    with torch.no_grad():
        cache(x, x)


# A loss that nobody propagates


def test_a_loss_that_is_forgotten_is_warned_of():
    module, x = encoder(), batch()
    cache = cached(module)
    (warning,) = forgotten(lambda: cache(x, x))
    assert warning.category is RuntimeWarning and "cache.step" in str(warning.message)
    assert not forgotten(lambda: cache(x, x).backward())
    assert not forgotten(lambda: cache.step(x, x))
    with torch.no_grad():
        assert not forgotten(lambda: cache(x, x))

    def failing():
        with pytest.raises(ZeroDivisionError):
            cached(module, loss=lambda x, y: x.sum() * (1 / 0))(x, x)

    assert not forgotten(failing)


def test_a_loss_that_is_kept_holds_neither_inputs_nor_embeddings():
    held = []

    def loss_of(x, y):
        held.extend(map(weakref.ref, (x, y)))
        return (x * y).sum()

    x = batch()
    held.append(weakref.ref(x))
    loss = cached(encoder(), loss=loss_of)(x, x + 1)
    loss.backward()
    del x
    assert [reference() for reference in held] == [None] * 3 and loss.requires_grad
