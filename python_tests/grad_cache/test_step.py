"""GradCache against one graph over the whole batch, in float64 and with dropout."""

import copy

import pytest
import torch
from torch import nn

import cl_kernels
from catalogue import textbook
from cl_kernels.grad_cache import GradCache, grad_cache_step
from python_tests.grad_cache.towers import (
    CHUNK,
    EXACT,
    ROWS,
    WIDTH,
    Recorder,
    batch,
    encoder,
    gradients,
    in_chunks,
    loss_function,
)


@pytest.mark.parametrize("chunk_size", [1, CHUNK, 7, ROWS, 100])
@pytest.mark.parametrize("towers", ["shared", "two", "three"])
def test_equals_the_whole_batch(towers, chunk_size):
    count = {"shared": 2, "two": 2, "three": 3}[towers]
    modules = [encoder() for _ in range(1 if towers == "shared" else count)]
    encoders = modules * (count // len(modules))
    inputs = [batch() for _ in range(count)]

    expected = loss_function(*(f(x) for f, x in zip(encoders, inputs, strict=True)))
    expected.backward()
    expected_gradients = gradients(*modules)
    cache = GradCache(
        modules[0] if towers == "shared" else modules, loss_function, chunk_size=chunk_size
    )
    loss = cache.step(*inputs)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach(), **EXACT)
    torch.testing.assert_close(gradients(*modules), expected_gradients, **EXACT)


def test_dropout_is_replayed_and_random_state_moves_on_once():
    first, second = encoder(dropout=0.5), encoder(dropout=0.2)
    x, y = batch(), batch()
    torch.manual_seed(7)
    expected = loss_function(in_chunks(first, x), in_chunks(second, y))
    expected.backward()
    state = torch.get_rng_state()
    expected_gradients = gradients(first, second)

    torch.manual_seed(7)
    loss = GradCache([first, second], loss_function, chunk_size=CHUNK).step(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(loss, expected.detach(), **EXACT)
    torch.testing.assert_close(gradients(first, second), expected_gradients, **EXACT)
    GradCache([first, second], loss_function, chunk_size=CHUNK).step(x, y)
    assert not torch.allclose(first[0].weight.grad, expected_gradients[0])  # other masks


def test_our_losses_and_a_learned_temperature():
    images, texts = encoder(dropout=0.3), encoder(dropout=0.3)
    x, y = batch(), batch()
    scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    torch.manual_seed(7)
    textbook.clip(in_chunks(images, x), in_chunks(texts, y), scale.exp(), normalize=True).backward()
    expected, expected_scale = gradients(images, texts), scale.grad
    scale.grad = None
    torch.manual_seed(7)
    loss = cl_kernels.ClipLoss(normalize=True)
    grad_cache_step([images, texts], [x, y], loss, chunk_size=CHUNK,
                    loss_options={"logit_scale": scale.exp()})  # fmt: skip
    torch.testing.assert_close(gradients(images, texts), expected, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(scale.grad, expected_scale, rtol=1e-11, atol=1e-14)

    temperature = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    GradCache(images, cl_kernels.NTXentLoss(temperature), chunk_size=CHUNK).step(x, y)
    assert temperature.grad is not None and temperature.grad != 0


def test_only_the_first_chunk_and_the_second_pass_have_a_graph():
    module = Recorder(encoder())
    GradCache(module, loss_function, chunk_size=10).step(batch(), batch())
    sizes = [8, 7, 7]
    assert [size for size, _ in module.calls] == sizes * 4
    assert [graph for _, graph in module.calls] == [True, False, False] * 2 + [True] * 6


def test_frozen_encoder_runs_once():
    image, text = encoder(), Recorder(encoder()).requires_grad_(False)
    x, y = batch(), batch()
    loss_function(image(x), text(y)).backward()
    expected = gradients(image)
    text.calls.clear()
    GradCache([image, text], loss_function, chunk_size=CHUNK).step(x, y)
    torch.testing.assert_close(gradients(image), expected, **EXACT)
    assert sum(size for size, _ in text.calls) == ROWS
    assert gradients(text) == [None] * 4

    @torch.no_grad()
    def without_grad(x):
        return text(x)

    GradCache([image, without_grad], loss_function, chunk_size=CHUNK).step(x, y)
    torch.testing.assert_close(gradients(image), expected, **EXACT)


def test_loss_that_detaches_one_side():
    def loss(x, y):
        return loss_function(x, y.detach())

    module, other = encoder(), encoder()
    x, y = batch(), batch()
    loss(module(x), other(y)).backward()
    expected = gradients(module)
    GradCache([module, other], loss, chunk_size=CHUNK, allow_unused=True).step(x, y)
    torch.testing.assert_close(gradients(module), expected, **EXACT)
    assert gradients(other) == [None] * 4


def test_encoder_of_several_embeddings():
    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = encoder(), encoder()

        def forward(self, image, text):
            return self.image(image), self.text(text)

        def encode_image(self, image):
            return self.image(image)

        def encode_text(self, text):
            return self.text(text)

    model = Clip()
    x, y = batch(), batch()
    loss_function(*model(x, y)).backward()
    expected = gradients(model)
    GradCache(model, loss_function, chunk_size=CHUNK).step((x, y))
    torch.testing.assert_close(gradients(model), expected, **EXACT)
    GradCache(model, loss_function, chunk_size=CHUNK).step({"image": x, "text": y})
    torch.testing.assert_close(gradients(model), expected, **EXACT)
    towers = [model.encode_image, model.encode_text]
    GradCache(towers, loss_function, chunk_size=[CHUNK, 9]).step(x, y)
    torch.testing.assert_close(gradients(model), expected, **EXACT)

    model.image.requires_grad_(False)  # locked-image tuning: part of the model is frozen
    GradCache(towers, loss_function, chunk_size=CHUNK).step(x, y)
    torch.testing.assert_close(gradients(model), [None] * 4 + expected[4:], **EXACT)


def test_gradients_of_inputs():
    module, x, y = encoder(), batch().requires_grad_(), batch()
    loss_function(module(x), module(y)).backward()
    expected, x.grad = x.grad, None
    GradCache(module, loss_function, chunk_size=CHUNK).step(x, y)
    torch.testing.assert_close(x.grad, expected, **EXACT)


def test_gradients_accumulate_over_calls():
    module = encoder()
    batches = [(batch(), batch()) for _ in range(3)]
    expected = [loss_function(module(x), module(y)) for x, y in batches]
    (sum(expected) / 3).backward()
    expected_gradients = gradients(module)
    cache = GradCache(module, loss_function, chunk_size=CHUNK, accumulation_steps=3)
    losses = [cache.step(x, y) for x, y in batches]
    torch.testing.assert_close(losses, [x.detach() for x in expected], **EXACT)
    torch.testing.assert_close(gradients(module), expected_gradients, **EXACT)


@pytest.mark.parametrize("training", [True, False])
def test_buffers_see_every_chunk_once(training):
    """Also spectral normalisation, whose weights depend on its buffers."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 16))
    module = nn.Sequential(layer, nn.BatchNorm1d(16), nn.Linear(16, 5)).double().train(training)
    twin = copy.deepcopy(module)
    x, y = batch(), batch()
    loss_function(in_chunks(twin, x), in_chunks(twin, y)).backward()
    GradCache(module, loss_function, chunk_size=CHUNK).step(x, y)
    assert module[1].num_batches_tracked == (12 if training else 0)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()), **EXACT)
    torch.testing.assert_close(gradients(module), gradients(twin), **EXACT)


def test_buffers_that_are_bound_anew():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(WIDTH, dtype=torch.float64))
            self.encoder = encoder()

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return self.encoder(x)

    module = Mean()
    twin = copy.deepcopy(module)
    x, y = batch(), batch()
    in_chunks(twin, x), in_chunks(twin, y)
    GradCache(module, loss_function, chunk_size=CHUNK).step(x, y)
    torch.testing.assert_close(module.mean, twin.mean, **EXACT)


def test_without_grad_it_only_computes_the_loss():
    module = Recorder(nn.Sequential(nn.BatchNorm1d(WIDTH), encoder()).double())
    twin = copy.deepcopy(module)
    x, y = batch(), batch()
    with torch.no_grad():
        expected = loss_function(in_chunks(twin, x), in_chunks(twin, y))
        loss = GradCache(module, loss_function, chunk_size=CHUNK).step(x, y)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()), **EXACT)
    assert sum(size for size, _ in module.calls) == 2 * ROWS
    assert all(g is None for g in gradients(module))


def test_failed_loss_leaves_buffers_alone():
    module = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 5)).double()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(FloatingPointError):
        GradCache(module, lambda x: x.sum() * torch.nan, chunk_size=CHUNK).step(batch())
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
