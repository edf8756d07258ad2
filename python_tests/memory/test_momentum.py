"""An encoder that follows: averages by hand in float64, wrappers, checkpoints and errors."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from cl_kernels import info_nce
from cl_kernels.memory import MomentumEncoder, Queue, cosine_momentum

EXACT = {"rtol": 1e-12, "atol": 1e-14}


def net(dtype=torch.float64):
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
    return nn.Sequential(*layers).to(dtype)


def change(encoder):
    """As a step of training does: parameters, and buffers by a forward pass."""
    encoder(torch.randn(8, 4).to(next(encoder.parameters()).dtype))
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("momentum", [0.9, 0.999, 0.0, 1, lambda step: 1 - 1 / (step + 2)])
def test_averages_by_hand(momentum, buffers):
    encoder = net()
    follower = MomentumEncoder(encoder, momentum, buffers=buffers)
    expected = {name: x.clone() for name, x in encoder.state_dict().items()}
    for step in range(5):
        change(encoder)
        follower.update()
        m = momentum(step) if callable(momentum) else momentum
        for name, x in encoder.state_dict().items():
            is_buffer = "running" in name or "num" in name
            if is_buffer and (buffers == "copy" or not x.is_floating_point()):
                expected[name] = x.clone()
            else:
                expected[name] = m * expected[name] + (1 - m) * x
        got = follower.module.state_dict()
        torch.testing.assert_close(got, expected, **EXACT)
        assert follower.step == step + 1
    assert follower.module[1].num_batches_tracked == 5


def test_cosine_momentum():
    schedule = pickle.loads(pickle.dumps(cosine_momentum(0.996, 200)))
    for step in range(201):
        exact = 1 - (1 - 0.996) * (math.cos(math.pi * step / 200) + 1) / 2
        assert math.isclose(schedule(step), exact, rel_tol=1e-15)
    assert schedule(0) == 0.996 and schedule(200) == schedule(10**9) == 1
    follower = MomentumEncoder(net(), cosine_momentum(0.5, 2))
    for _ in range(5):
        follower.update()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.5, 10), ValueError, "base: expected from 0 to 1, got 1.5"),
        (("1", 10), TypeError, "base: expected a number, got str"),
        ((0.9, 0), ValueError, "steps: expected at least 1, got 0"),
        ((0.9, 2.5), TypeError, "steps: expected an integer, got float"),
    ],
)
def test_bad_schedules(arguments, error, message):
    with pytest.raises(error, match=message):
        cosine_momentum(*arguments)


class TestNoGradient:
    def test_flows(self):
        encoder = net()
        follower = MomentumEncoder(encoder)
        assert not any(p.requires_grad for p in follower.parameters())
        x = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
        key = follower(x)
        assert not key.requires_grad
        info_nce(encoder(x), key).backward()
        follower.update()
        assert all(p.grad is None for p in follower.parameters())
        assert all(p.grad is not None and p.requires_grad for p in encoder.parameters())
        follower.requires_grad_(True)
        assert not follower(x).requires_grad

    def test_update_between_forward_and_backward(self):
        encoder = net()
        follower = MomentumEncoder(encoder, 0.5)
        x = torch.randn(8, 4, dtype=torch.float64)
        loss = info_nce(encoder(x), follower(x))
        expected = torch.autograd.grad(
            info_nce(encoder(x), follower(x)), list(encoder.parameters())
        )
        follower.update()
        got = torch.autograd.grad(loss, list(encoder.parameters()))
        torch.testing.assert_close(got, expected, **EXACT)

    @pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
    def test_updates_anywhere(self, context):
        encoder = net()
        follower = MomentumEncoder(encoder, 0.5)
        change(encoder)
        twin = copy.deepcopy(follower)
        with context():
            follower.update()
        twin.update()
        torch.testing.assert_close(follower.state_dict(), twin.state_dict(), rtol=0, atol=0)


def test_the_encoder_is_not_part_of_it():
    encoder = net()
    follower = MomentumEncoder(encoder)
    assert len(list(follower.parameters())) == len(list(encoder.parameters()))
    assert not {id(x) for x in follower.parameters()} & {id(x) for x in encoder.parameters()}
    assert {name.split(".")[0] for name in follower.state_dict()} == {"module", "step"}
    x = torch.randn(8, 4, dtype=torch.float64)
    assert torch.equal(follower(x), encoder(x))


def test_train_and_eval():
    for training in (True, False):
        encoder = net().train(training)
        encoder[1].eval()
        follower = MomentumEncoder(encoder)
        modes = [m.training for m in encoder.modules()]
        assert [m.training for m in follower.module.modules()] == modes
        assert follower.training == training
    model = nn.ModuleDict({"encoder": encoder, "follower": follower}).train()
    x = torch.randn(8, 4, dtype=torch.float64)
    assert torch.equal(follower(x), encoder(x)) and follower.module[1].num_batches_tracked == 1
    model.eval()
    assert torch.equal(follower(x), encoder(x)) and follower.module[1].num_batches_tracked == 1


def test_tied_parameters_stay_tied():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    encoder[2].weight = encoder[0].weight
    encoder.append(encoder[0])
    follower = MomentumEncoder(encoder, 0.5)
    own = follower.module
    assert own[2].weight is own[0].weight and own[3] is own[0]
    before = own[0].weight.clone()
    with torch.no_grad():
        encoder[0].weight.add_(1)
    follower.update()
    torch.testing.assert_close(own[0].weight, before + 0.5, **EXACT)
    encoder[2].weight = nn.Parameter(encoder[0].weight.clone())
    with pytest.raises(ValueError, match=r"got '2.weight' added"):
        follower.update()


def train(model, optimizer, steps):
    encoder, follower, queue = model["encoder"], model["follower"], model["queue"]
    generator = torch.Generator().manual_seed(steps)
    losses = []
    for _ in range(steps):
        x, y = torch.randn(2, 8, 4, generator=generator).double()
        key = follower(y)
        loss = info_nce(encoder(x), key, queue.keys)
        queue.push(key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follower.update()
        losses.append(loss.item())
    return losses


def moco():
    encoder = net()
    follower = MomentumEncoder(encoder, cosine_momentum(0.9, 20))
    queue = Queue(20, 3, dtype=torch.float64)
    model = nn.ModuleDict({"encoder": encoder, "follower": follower, "queue": queue})
    return model, torch.optim.Adam(encoder.parameters(), lr=0.05)


def test_training_goes_on_from_a_checkpoint(tmp_path):
    model, optimizer = moco()
    train(model, optimizer, 7)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "state")
    other, its_optimizer = moco()
    train(other, its_optimizer, 3)
    state = torch.load(tmp_path / "state", weights_only=True)
    other.load_state_dict(state["model"])
    its_optimizer.load_state_dict(state["optimizer"])
    assert other["follower"].step == 7
    assert train(other, its_optimizer, 9) == train(model, optimizer, 9)
    for name, x in model.state_dict().items():
        assert torch.equal(x, other.state_dict()[name]), name
    with pytest.raises(RuntimeError, match="step: expected at least 0, got -1"):
        model["follower"].load_state_dict(
            model["follower"].state_dict() | {"step": torch.tensor(-1)}
        )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_model_follow_their_own_encoder(copied):
    model, _ = moco()
    twin = copied(model)
    change(twin["encoder"])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    twin["follower"].momentum = 0.0
    twin["follower"].update()
    expected = list(twin["encoder"].parameters())
    torch.testing.assert_close(list(twin["follower"].parameters()), expected, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
