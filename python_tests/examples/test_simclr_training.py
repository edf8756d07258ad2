"""Parts of the SimCLR example's training: chunks, optimisers, losses, encoders, collapse."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("kornia")
pytest.importorskip("sklearn")

from examples.common import checkpoint
from examples.common.images.collapse import embedding_health, warning
from examples.common.images.encoders import make_encoder
from examples.common.images.optim import LARS, make_optimizer
from examples.common.images.vision import import_torchvision
from examples.simclr.config import make_config
from examples.simclr.loss import make_loss
from python_tests.examples.simclr_runs import SMALL, assert_same, make_trainer

# Gradient caching


def gradients(trainer):
    """Loss and gradients of one step in float64."""
    trainer.model.double()
    trainer.images = trainer.images.double()
    torch.manual_seed(5)
    loss = trainer._backward(torch.arange(32))
    return loss, torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


def test_chunks_do_not_change_the_step_of_an_encoder_without_batch_statistics():
    loss, whole = gradients(make_trainer(norm="group"))
    for chunk in (1, 7, 32):
        ours, chunked = gradients(make_trainer(norm="group", chunk=chunk))
        assert ours == pytest.approx(loss, rel=1e-12)
        assert (chunked - whole).norm() < 1e-12 * whole.norm()


def test_chunks_normalise_by_their_own_statistics_under_batch_norm():
    _, whole = gradients(make_trainer(norm="batch"))
    _, chunked = gradients(make_trainer(norm="batch", chunk=8))
    assert (chunked - whole).norm() > 1e-2 * whole.norm()


def test_a_chunked_run_resumes_exactly(tmp_path):
    path = tmp_path / "checkpoint.pt"
    whole = make_trainer(chunk=8, optimizer="lars")
    whole.run(path)
    first = make_trainer(chunk=8, optimizer="lars")
    for _ in range(2):
        first.train_epoch()
    checkpoint.save(path, first.state_dict())
    second = make_trainer(chunk=8, optimizer="lars")
    torch.manual_seed(999)
    second.resume(path)
    second.run(path)
    assert_same(second.model.state_dict(), whole.model.state_dict())


# Optimisers


def test_lars_is_the_algorithm_of_the_paper():
    # w, g, and three steps of algorithm 1 of You et al. 2017, in float64 and by scalars.
    weight, gradient = torch.tensor([3.0, 4.0]), torch.tensor([0.6, -0.8])
    rate, momentum, decay, trust = 0.5, 0.9, 0.01, 0.02
    exact, velocity = weight.double(), torch.zeros(2, dtype=torch.float64)
    ours = nn.Parameter(weight.clone())
    optimizer = LARS([ours], lr=rate, momentum=momentum, weight_decay=decay, trust=trust)
    for step in range(3):
        g = gradient.double() * (step + 1)
        local = trust * exact.norm() / (g.norm() + decay * exact.norm())
        velocity = momentum * velocity + rate * local * (g + decay * exact)
        exact = exact - velocity
        ours.grad = gradient * (step + 1)
        optimizer.step()
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)


def test_lars_moves_zero_weights_and_leaves_vectors_to_plain_momentum():
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    config = make_config({"optimizer": "lars", "learning_rate": 0.1, "weight_decay": 0.5})
    optimizer = make_optimizer(model, config)
    bias = model.bias.item()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert model.bias.item() == pytest.approx(bias - 0.1)
    assert model.weight.tolist() == [pytest.approx([-0.1, -0.1])]


def test_lars_refuses_what_makes_no_sense():
    for wrong in ({"lr": -1.0}, {"lr": 1.0, "momentum": float("nan")}, {"lr": 1.0, "trust": 0.0}):
        with pytest.raises(ValueError, match=f"{list(wrong)[-1]}: expected"):
            LARS([nn.Parameter(torch.ones(1))], **wrong)


def test_training_with_lars_learns():
    trainer = make_trainer(epochs=15, optimizer="lars", learning_rate=10.0)
    for _ in range(15):
        trainer.train_epoch()
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"] - 0.1


# Losses


@pytest.mark.parametrize("grouped", [False, True])
def test_the_eager_loss_is_the_same_loss(grouped):
    view_0, view_1 = torch.randn(2, 12, 5, dtype=torch.float64).requires_grad_()
    groups = torch.arange(12) // 3 if grouped else None
    results = []
    for name in ("cl_kernels", "eager"):
        loss = make_loss(name, 0.2)(view_0, view_1, groups)
        results.append((loss.item(), *torch.autograd.grad(loss, (view_0, view_1))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


# Encoders


class Residual(nn.Module):
    """What is used of torchvision's and timm's ResNets."""

    def __init__(self, norm_layer, **placement):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.bn1 = norm_layer(64, **placement)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.fc = nn.Linear(64, 1000)

    def forward(self, images):
        return self.fc(self.maxpool(self.bn1(self.conv1(images))).mean((2, 3)))


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_resnets_come_from_either_package_and_get_the_stem_for_small_images(package, monkeypatch):
    models = SimpleNamespace(resnet18=lambda norm_layer: Residual(norm_layer))
    fakes = {
        "torchvision": SimpleNamespace(models=models),
        "timm": SimpleNamespace(
            create_model=lambda name, norm_layer: Residual(norm_layer, device=None)
        ),
    }
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, package, fakes[package])
    small = make_config({"encoder": "resnet18", "norm": "group"})
    encoder = make_encoder(small, channels=1)
    assert encoder.features == 64 and encoder(torch.rand(2, 1, 8, 8)).shape == (2, 64)
    assert encoder.conv1.stride == (1, 1) and isinstance(encoder.bn1, nn.GroupNorm)
    large = make_encoder(make_config({"encoder": "resnet18", "image_size": 96}), channels=3)
    assert large.conv1.stride == (2, 2) and isinstance(large.bn1, nn.BatchNorm2d)


def test_without_either_package_a_resnet_is_refused(monkeypatch):
    for package in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"resnet50 is torchvision's or timm's.*--encoder"):
        make_encoder(make_config({"encoder": "resnet50"}), channels=1)


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet50", 2048)])
def test_real_resnets_train(name, features):
    try:
        import_torchvision()
    except ImportError as error:
        pytest.skip(str(error))
    trainer = make_trainer(encoder=name, batch_size=8, chunk=4)
    assert trainer.model.encoder(torch.rand(2, 1, 8, 8)).shape == (2, features)
    first = trainer.train_step(torch.arange(8))
    assert trainer.train_step(torch.arange(8)) != first


# Collapse


def test_health_against_the_definitions():
    view_0, view_1 = torch.randn(2, 20, 6)
    health = embedding_health(view_0, view_1)
    x, y = F.normalize(view_0.double()), F.normalize(view_1.double())
    both = torch.cat([x, y])
    spectrum = torch.linalg.svdvals(both - both.mean(0))
    share = spectrum / spectrum.sum()
    distances = torch.pdist(both).square()
    assert health["std"] == pytest.approx(float(both.std(0).mean() * 6**0.5), rel=1e-5)
    assert health["effective_rank"] == pytest.approx(float((-share * share.log()).sum().exp()))
    assert health["alignment"] == pytest.approx(float((x - y).square().sum(1).mean()), rel=1e-5)
    uniformity = float((-2 * distances).exp().mean().log())
    assert health["uniformity"] == pytest.approx(uniformity, abs=1e-5)
    assert warning(health, 6) is None


def test_collapse_to_a_point_and_to_few_directions_are_told_apart():
    point = torch.ones(20, 6) + 1e-3 * torch.randn(20, 6)
    assert "collapsed to a point" in str(warning(embedding_health(point, point), 6))
    line = torch.randn(20, 1) * torch.ones(6) + 1e-4 * torch.randn(20, 6)
    assert "to a few directions (effective rank 1." in str(warning(embedding_health(line, line), 6))


def test_a_collapsed_run_warns_once(tmp_path, capsys):
    trainer = make_trainer(warmup=0.3)
    nn.init.zeros_(trainer.model.head[-1].weight)
    trainer.model.head[-1].weight.requires_grad_(False)
    trainer.run(tmp_path / "checkpoint.pt")
    assert capsys.readouterr().err.count("warning: after epoch 2 the embeddings have") == 1


# What is logged


def test_scalars_reach_tensorboard_once_each_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from examples.common.images.scalars import tensorboard

    for epochs in (2, 4):  # the first run was killed after epoch 2, with step 7 logged already
        trainer = make_trainer()
        path = tmp_path / "checkpoint.pt"
        if path.exists():
            trainer.load_state_dict(checkpoint.load(path, "SimCLR"))
        trainer.config = make_config({**SMALL, "epochs": epochs})
        with tensorboard(tmp_path / "scalars", trainer.epoch * trainer.steps) as log:
            trainer.run(path, monitor=lambda model: {"k-NN accuracy": 0.5}, log=log)
            log(epochs * trainer.steps + 1, {"step/loss": 99.0})
    seen = EventAccumulator(str(tmp_path / "scalars"))
    seen.Reload()
    losses = seen.Scalars("step/loss")
    assert [event.step for event in losses] == list(range(1, 14))
    assert [event.value for event in losses].count(99.0) == 1
    assert [event.step for event in seen.Scalars("epoch/k-NN_accuracy")] == [3, 6, 9, 12]


def test_without_tensorboard_a_note_says_so(monkeypatch, tmp_path, capsys):
    from examples.common.images.scalars import tensorboard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with tensorboard(tmp_path, 0) as log:
        assert log is None
    assert "TensorBoard scalars are off" in capsys.readouterr().out
