"""The loss that a call of GradCache returns, and its backward pass."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import cl_kernels
from cl_kernels.memory import MomentumEncoder, Queue
from python_tests.grad_cache.towers import (
    EXACT,
    WIDTH,
    Recorder,
    batch,
    cached,
    encoder,
    gradients,
    in_chunks,
    loss_function,
)

# What is made of the loss

USES = {
    "loss": lambda loss, p: loss,
    "part": lambda loss, p: loss / 3,
    "sum": lambda loss, p: loss + (p**2).sum(),
    "power": lambda loss, p: 2 * loss**2,
    "vector": lambda loss, p: torch.stack([loss, p.sum(), loss]) @ torch.arange(3.0).double(),
}


@pytest.mark.parametrize("use", USES)
def test_whatever_is_made_of_the_loss(use):
    first, second = encoder(), encoder()
    x, y = batch(), batch()
    whole = loss_function(first(x), second(y))
    USES[use](whole, first[0].weight).backward()
    expected = gradients(first, second)
    loss = cached(first, second)(x, y)
    assert loss.requires_grad and gradients(first, second) == [None] * 8
    torch.testing.assert_close(loss, whole, **EXACT)
    USES[use](loss, first[0].weight).backward()
    torch.testing.assert_close(gradients(first, second), expected, **EXACT)


def test_a_gradient_of_the_loss_that_is_given():
    module, x, y = encoder(), batch(), batch()
    (-2.5 * loss_function(module(x), module(y))).backward()
    expected = gradients(module)
    cached(module)(x, y).backward(torch.tensor(-2.5, dtype=torch.float64))
    torch.testing.assert_close(gradients(module), expected, **EXACT)


def test_several_losses_in_one_backward_pass():
    """Of one encoder, which is also used without a cache, and whose buffers all of them change."""
    module = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout(0.4), encoder()).double()
    twin, batches = copy.deepcopy(module), [batch() for _ in range(5)]

    def total(encode, losses):
        a, b, c, d, e = batches
        return losses(a, b) + encode(e).square().sum() + 2 * losses(c, d)

    torch.manual_seed(5)
    total(twin, lambda x, y: loss_function(in_chunks(twin, x), in_chunks(twin, y))).backward()
    state = torch.get_rng_state()
    torch.manual_seed(5)
    loss = total(module, cached(module))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()), **EXACT)
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()), **EXACT)
    torch.testing.assert_close(gradients(module), gradients(twin), **EXACT)


def test_buffers_that_another_graph_keeps():
    """Of BatchNorm in evaluation, which are put back as they were."""
    module = nn.Sequential(nn.BatchNorm1d(WIDTH), encoder()).double().eval()
    x, y = batch(), batch()
    (loss_function(module(x), module(y)) + module(y).sum()).backward()
    expected = gradients(module)
    (module(y).sum() + cached(module)(x, y)).backward()
    torch.testing.assert_close(gradients(module), expected, **EXACT)


def test_one_graph_above_inputs_options_and_another_term():
    trunk, module, y = nn.Linear(WIDTH, WIDTH).double(), encoder(), batch()

    def total(losses):
        x = trunk(y).tanh()
        return losses(x, x, temperature=x.square().mean()) + x.sum()

    def whole(x, z, temperature):
        return loss_function(module(x), module(z), temperature=temperature)

    total(whole).backward()
    expected = gradients(trunk, module)
    total(cached(module)).backward()
    torch.testing.assert_close(gradients(trunk, module), expected, **EXACT)


def test_gradients_of_inputs_that_are_leaves():
    module, x = encoder(), batch().requires_grad_()
    loss_function(module(x), module(2 * x)).backward()
    expected, x.grad = x.grad, None
    cached(module)(x, 2 * x).backward()
    torch.testing.assert_close(x.grad, expected, **EXACT)


def test_a_scaler_skips_what_is_infinite():
    module = encoder(dtype=torch.float32)
    x, y = batch().float(), batch().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler.scale(loss_function(module(x), module(y))).backward()
    expected = gradients(module)
    cache = cached(module)
    scaler.scale(cache(x, y)).backward()
    torch.testing.assert_close(
        [p.grad for p in module.parameters()], expected, rtol=1e-4, atol=1e-4
    )
    optimizer.zero_grad()
    before = copy.deepcopy(module.state_dict())
    scaler.scale(cache(x * torch.inf, y)).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert scaler.get_scale() == 512


def test_a_mapping_of_losses():
    """Is returned as it is; ``step`` propagates the part named "loss", else the sum."""
    module, x, y = encoder(), batch(), batch()

    def parts(x, y):
        return {"info_nce": loss_function(x, y), "size": x.square().mean()}

    for names in (("info_nce", "size"), ("size",)):
        found = parts(module(x), module(y))
        sum(found[name] for name in names).backward()
        expected = gradients(module)
        cache = cached(module, loss=parts, allow_unused=True)
        got = cache(x, y)
        torch.testing.assert_close(got, found, **EXACT)
        sum(got[name] for name in names).backward()
        torch.testing.assert_close(gradients(module), expected, **EXACT)
        if len(names) == 2:
            assert not any(part.requires_grad for part in cache.step(x, y).values())
        else:
            named = cached(module, loss=lambda x, y: parts(x, y) | {"loss": x.square().mean()},
                           allow_unused=True)  # fmt: skip
            named.step(x, y)
        torch.testing.assert_close(gradients(module), expected, **EXACT)


def test_a_queue_sees_the_whole_batch_once():
    """Also with keys of a momentum encoder, which runs once and may move before ``backward()``."""
    module = encoder()
    keys = MomentumEncoder(module, 0.9)
    queue = Queue(50, 5, dtype=torch.float64)
    twin, other_keys, other_queue = copy.deepcopy((module, keys, queue))

    def with_queue(queue):
        def loss(x, y):
            value = cl_kernels.info_nce(x, y, queue.keys, in_batch_negatives=True)
            queue.push(y)
            return value

        return loss

    loss, expected = with_queue(queue), with_queue(other_queue)
    for x, y in [(batch(), batch()) for _ in range(4)]:
        whole, parts = expected(twin(x), other_keys(y)), cached(module, keys, loss=loss)(x, y)
        keys.update()
        other_keys.update()
        whole.backward()
        parts.backward()
        torch.testing.assert_close(gradients(module), gradients(twin), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(queue.keys, other_queue.keys, **EXACT)
    assert len(queue) == 50


# Where the backward pass runs


def test_in_another_thread():
    """With the autocast of the call, which another thread is not in."""
    module = encoder(dropout=0.4, dtype=torch.float32)
    x, y = batch().float(), batch().float()

    def run(backward):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            loss = cached(module)(x, y)
        backward(loss)
        return gradients(module)

    def elsewhere(loss):
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()

    torch.testing.assert_close(run(elsewhere), run(torch.Tensor.backward), rtol=0, atol=0)


@pytest.mark.parametrize("later", [False, True])
def test_the_second_encoding_runs_in_the_autocast_of_the_call(later):
    module, seen = encoder(dtype=torch.float32), []

    def noting(x):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return module(x)

    x, y = batch().float(), batch().float()
    with torch.autocast("cpu", torch.float16, enabled=not later):
        loss = cached(noting)(x, y)
    with torch.autocast("cpu", torch.bfloat16, enabled=later):
        loss.backward()
        assert torch.is_autocast_enabled("cpu") is later
    assert len(seen) == 24 and {enabled for enabled, _ in seen} == {not later}
    assert later or {dtype for _, dtype in seen} == {torch.float16}


@pytest.mark.parametrize("reentrant", [False, True])
def test_encoders_that_recompute_their_activations(reentrant):
    module, x, y = encoder(dropout=0.4), batch(), batch()

    def encode(x):
        return checkpoint(module, x.requires_grad_(reentrant), use_reentrant=reentrant)

    torch.manual_seed(3)
    loss_function(in_chunks(module, x), in_chunks(module, y)).backward()
    expected = gradients(module)
    torch.manual_seed(3)
    cached(encode)(x.clone(), y.clone()).backward()
    torch.testing.assert_close(gradients(module), expected, **EXACT)


def test_within_a_compiled_step():
    module, x, y = encoder(), batch(), batch()
    cache = cached(module)

    def step(x, y):
        loss = cache(2 * x, y) * 3
        return loss.sin()

    step(x, y).backward()
    expected = gradients(module)
    torch.compile(step, backend="aot_eager")(x, y).backward()
    torch.testing.assert_close(gradients(module), expected, **EXACT)


def test_hooks_that_step_get_whole_gradients():
    """As an optimizer in the backward pass does; a hook a chunk would move the weights under it."""
    module, x, y = encoder(), batch(), batch()
    loss_function(module(x), module(y)).backward()
    expected, seen = gradients(module), []
    for p in module.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    cached(module)(x, y).backward()
    assert len(seen) == 4
    torch.testing.assert_close(gradients(module), expected, **EXACT)
    module[0].weight.register_hook(lambda grad: 2 * grad)
    with pytest.raises(ValueError, match="encoders: expected no hooks on gradients"):
        cached(module)(x, y)


def test_a_tied_gradient_is_summed_up_once():
    """Two parameters may get one tensor as their gradient."""
    first, second = (nn.Parameter(torch.randn(WIDTH, 5, dtype=torch.float64)) for _ in range(2))

    def encode(x):
        return x @ (first + second)

    x, y = batch(), batch()
    loss_function(encode(x), encode(y)).backward()
    expected = [first.grad, second.grad]
    first.grad = second.grad = None
    first.register_post_accumulate_grad_hook(lambda p: None)
    cached(encode)(x, y).backward()
    torch.testing.assert_close([first.grad, second.grad], expected, **EXACT)


def test_only_the_first_chunks_and_the_backward_pass_have_a_graph():
    module = Recorder(encoder())
    loss = cached(module, chunk_size=10)(batch(), batch())
    assert [graph for _, graph in module.calls] == [True, False, False] * 2
    loss.backward()
    assert [graph for _, graph in module.calls[6:]] == [True] * 6
