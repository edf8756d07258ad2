"""The SimCLR example: a whole run, exact resume, a real kill, metrics checked by hand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("kornia")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples.simclr import checkpoint, data, memory, report
from examples.simclr.__main__ import main
from examples.simclr.augment import make_augmentation
from examples.simclr.config import PRESETS, make_config
from examples.simclr.evaluate import encode, evaluate, linear_probe, retrieval
from examples.simclr.model import SimCLR
from examples.simclr.train import Trainer

SMALL = {"epochs": 4, "batch_size": 32, "width": 4, "stages": 2, "projection": 8, "device": "cpu"}


def make_trainer(**settings):
    images = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Trainer(make_config({**SMALL, **settings}), images)


def assert_same(actual, expected):
    """Bitwise, through nested containers."""
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_same(actual[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert actual == expected


def outcome(trainer):
    """Everything but the time that it took."""
    return {name: value for name, value in trainer.state_dict().items() if name != "seconds"}


def finished(path, **settings):
    trainer = make_trainer(**settings)
    trainer.run(path)
    return outcome(trainer)


# A whole run


def test_quick_run_writes_a_report_and_does_not_train_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "LARGE_BATCH", 1024)
    arguments = ["--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for word in ("raw pixels", "before training", "after training", "mAP", "5-shot probe"):
        assert word in printed
    for name in ("loss.png", "embeddings.png"):
        assert str(tmp_path / name) in printed
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["scores"]["raw pixels"]["mAP"]["mean"] == pytest.approx(0.642, abs=0.005)
    assert record["scores"]["raw pixels"]["recall@1"]["mean"] == pytest.approx(0.98, abs=0.005)
    assert [loss["pairs"] for loss in record["loss_memory"]] == [256, 1024]
    assert record["loss_memory"][0]["dense_bytes_computed"] == 512 * 512 * 4
    assert len(record["history"]) == record["settings"]["epochs"]

    monkeypatch.setattr(Trainer, "train_epoch", None)
    monkeypatch.setattr(memory, "measure", lambda *_: (None, "no /proc"))
    monkeypatch.setattr(report.plots, "plot_embeddings", lambda *_: None)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "resumed" in printed and "not measured: no /proc" in printed
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["scores"] == record["scores"]


def test_training_learns_to_tell_views_apart():
    trainer = make_trainer(epochs=15)
    for _ in range(15):
        trainer.train_epoch()
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"] - 0.1


def test_autocast_reaches_the_model_and_the_loss_stays_finite():
    trainer = make_trainer(precision="bfloat16")
    seen = []
    trainer.model.encoder.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    trainer.train_epoch()
    assert set(seen) == {torch.bfloat16}
    assert np.isfinite(trainer.history[0]["loss"])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = make_trainer()
    trainer.images = torch.full_like(trainer.images, torch.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1"):
        trainer.run(tmp_path / "checkpoint.pt")
    assert not list(tmp_path.iterdir())


def test_learning_rate_rises_linearly_then_falls_to_zero():
    trainer = make_trainer(epochs=10, warmup=0.2)
    rates = [trainer.scheduler.get_last_lr()[0]]
    for _ in range(10 * trainer.steps):
        trainer.optimizer.step()
        trainer.scheduler.step()
        rates.append(trainer.scheduler.get_last_lr()[0])
    peak = trainer.config.learning_rate
    rising = 2 * trainer.steps
    line = torch.linspace(peak / rising, peak, rising + 1)
    assert rates[: rising + 1] == pytest.approx(line.tolist(), rel=1e-5)
    assert (np.diff(rates[rising:]) < 0).all()
    assert rates[-1] == pytest.approx(0, abs=1e-9)


# Checkpoints


def test_resume_after_an_interrupted_epoch_is_exact(tmp_path):
    uninterrupted = finished(tmp_path / "whole.pt")

    path = tmp_path / "checkpoint.pt"
    first = make_trainer()
    for _ in range(2):
        first.train_epoch()
    checkpoint.save(path, first.state_dict())
    with pytest.raises(KeyboardInterrupt):
        first.train_epoch(interrupt)

    second = make_trainer()
    torch.manual_seed(999)
    second.resume(path)
    assert second.epoch == 2
    second.run(path)
    assert_same(outcome(second), uninterrupted)
    assert_same(checkpoint.load(path)["model"], uninterrupted["model"])


def interrupt(loss):
    raise KeyboardInterrupt


def test_resume_after_a_real_kill_is_exact(tmp_path):
    epochs = 60
    path = tmp_path / "checkpoint.pt"
    script = (
        "import pathlib, torch\n"
        "from python_tests.test_example_simclr import make_trainer\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"make_trainer(epochs={epochs}).run(pathlib.Path({str(path)!r}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"

    resumed = make_trainer(epochs=epochs)
    resumed.resume(path)
    assert 1 <= resumed.epoch < epochs
    resumed.run(path)
    assert_same(outcome(resumed), finished(tmp_path / "whole.pt", epochs=epochs))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_dies_leaves_the_last_checkpoint(tmp_path, monkeypatch, call):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"epoch": 1})

    def die(*_):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, call, die)
        checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path) == {"epoch": 1}
    checkpoint.save(path, {"epoch": 3})
    assert checkpoint.load(path) == {"epoch": 3}


def test_half_a_file_beside_the_checkpoint_is_ignored(tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer = make_trainer(epochs=2)
    trainer.train_epoch()
    checkpoint.save(path, trainer.state_dict())
    path.with_name("checkpoint.pt.partial").write_bytes(path.read_bytes()[:1000])
    resumed = make_trainer(epochs=2)
    resumed.resume(path)
    resumed.run(path)
    assert checkpoint.load(path)["history"] == resumed.history
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_is_an_error_that_says_so(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint\.pt cannot be read.*--fresh"):
        make_trainer().resume(path)


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer = make_trainer()
    checkpoint.save(path, trainer.state_dict())
    other = make_trainer(temperature=0.1, seed=7)
    with pytest.raises(checkpoint.CheckpointError) as refusal:
        other.resume(path)
    assert "seed is 0 there and 7 here" in str(refusal.value)
    assert "temperature is 0.5 there and 0.1 here" in str(refusal.value)
    assert "width" not in str(refusal.value)


def test_other_images_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, make_trainer().state_dict())
    more = Trainer(make_config(SMALL), torch.rand(120, 1, 8, 8))
    with pytest.raises(checkpoint.CheckpointError, match=r"training_images is \[100, 1, 8, 8\]"):
        more.resume(path)


def test_the_command_refuses_and_starts_over_when_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("examples.simclr.__main__.write_report", lambda *_: "reported")
    arguments = ["--quick", "--width", "4", "--epochs", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "3"]) == 2
    assert "seed is 0 there and 3 here" in capsys.readouterr().err
    assert main([*arguments, "--seed", "3", "--fresh"]) == 0
    assert checkpoint.load(tmp_path / "checkpoint.pt")["settings"]["seed"] == 3


# Evaluation


def on_circle(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_retrieval_by_hand():
    unit = on_circle(0.0, 10.0, 25.0, 45.0, 70.0)
    labels = torch.tensor([0, 1, 0, 0, 1])
    # Others of each query, nearest first, 1 where relevant, and the average precision:
    # 0: 10 25 45 70 -> 0 1 1 0, (1/2 + 2/3) / 2; 10: 0 25 45 70 -> 0 0 0 1, 1/4
    # 25: 10 45 0 70 -> 0 1 1 0, 7/12; 45: 25 70 10 0 -> 1 0 0 1, (1 + 2/4) / 2
    # 70: 45 25 10 0 -> 0 0 1 0, 1/3
    expected = (7 / 12 + 1 / 4 + 7 / 12 + 3 / 4 + 1 / 3) / 5
    for chunk in (1, 2, 100):
        assert retrieval(unit, labels, chunk) == pytest.approx((expected, 1 / 5))


def test_retrieval_leaves_out_queries_without_an_answer():
    unit = on_circle(0.0, 10.0, 90.0)
    assert retrieval(unit, torch.tensor([0, 0, 1])) == pytest.approx((1.0, 1.0))
    with pytest.raises(ValueError, match="no two images share a label"):
        retrieval(unit, torch.tensor([0, 1, 2]))


def test_probe_of_separable_features_is_perfect_and_of_noise_is_chance():
    labels = torch.arange(4).repeat(25)
    separable = linear_probe(torch.eye(4)[labels], labels, shots=1)
    assert separable == (1.0, 0.0)
    noise = torch.nn.functional.normalize(torch.randn(100, 8), dim=1)
    chance = linear_probe(noise, labels, shots=5)
    assert chance.mean == pytest.approx(0.25, abs=0.1) and chance.std > 0
    assert linear_probe(noise, labels, shots=5) == chance


def test_scores_ignore_the_length_of_features():
    labels = torch.arange(3).repeat(10)
    features = torch.randn(30, 5)
    scaled = features * torch.rand(30, 1).add(0.5) * 100
    ours, theirs = evaluate(features, labels), evaluate(scaled, labels)
    for name in ours:
        assert ours[name].mean == pytest.approx(theirs[name].mean, abs=0.02)


def test_features_come_from_the_encoder_in_evaluation_mode():
    model = SimCLR(channels=1, width=4, stages=3, projection=8).train()
    images = torch.rand(10, 1, 8, 8)
    features = encode(model, images, batch_size=4)
    assert features.shape == (10, 16)
    assert not features.requires_grad
    torch.testing.assert_close(features, encode(model, images))


# Data and augmentations


def test_digits_split_is_fixed_disjoint_and_has_every_class():
    labels = np.arange(100) % 10
    train, heldout = data._split(labels, 30)
    assert sorted([*train, *heldout]) == list(range(100))
    assert (np.bincount(labels[heldout]) == 3).all()
    images, again = data.load("digits", None, 8), data.load("digits", None, 8)
    assert images.train.shape == (1297, 1, 8, 8) and images.heldout.shape == (500, 1, 8, 8)
    assert images.train.max() == 1 and images.train.min() == 0
    assert_same(images, again)


@pytest.mark.parametrize("name", ["cifar10", "stl10", "folder"])
def test_without_torchvision_the_message_says_what_to_do(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert main(["--data", name, "--root", str(tmp_path)]) == 2
    assert "pip install torchvision" in capsys.readouterr().err


def test_data_errors(tmp_path, capsys):
    assert main(["--data", "cifar10"]) == 2
    assert "needs --root PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--data", "imagenet"])
    assert "invalid choice: 'imagenet'" in capsys.readouterr().err
    with pytest.raises(data.DataError, match="8 x 8; got image_size 16"):
        data.load("digits", None, 16)


class FakeCifar:
    """What the example takes of ``torchvision.datasets.CIFAR10``."""

    classes = ("cat", "dog")

    def __init__(self, root, train, download):
        if not download:
            raise RuntimeError("Dataset not found or corrupted.")
        self.data = np.full((12, 32, 32, 3), 255, dtype=np.uint8)
        self.targets = [0, 1] * 6


def test_cifar10_is_only_downloaded_when_told(tmp_path, monkeypatch):
    datasets = SimpleNamespace(CIFAR10=FakeCifar)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets))
    with pytest.raises(data.DataError, match=r"cifar10 was not found whole.*--download"):
        data.load("cifar10", tmp_path, 32)
    images = data.load("cifar10", tmp_path, 16, download=True)
    assert images.train.shape == (12, 3, 16, 16) and images.train.dtype == torch.uint8
    assert images.heldout_labels.tolist() == [0, 1] * 6 and images.classes == ["cat", "dog"]
    assert (data.as_float(images.train) == 1).all()


def test_too_few_heldout_images_are_an_error_before_training(tmp_path, monkeypatch):
    few = data.Images(torch.rand(9, 3, 8, 8), torch.rand(9, 3, 8, 8), torch.arange(9) % 3, [*"abc"])
    monkeypatch.setattr(data, "_folder", lambda *_: few)
    with pytest.raises(data.DataError, match="the smallest with 3 held-out images"):
        data.load("folder", tmp_path, 8)


def test_image_folder_with_and_without_its_own_split(tmp_path):
    try:
        data._torchvision()
    except data.DataError as error:
        pytest.skip(str(error))
    from PIL import Image

    for part in ("one", "two/train", "two/val"):
        for colour, name in enumerate(("black", "white")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(30):
                Image.new("RGB", (20, 12), (255 * colour,) * 3).save(folder / f"{index}.png")
    split = data.load("folder", tmp_path / "one", 8)
    assert split.train.shape == (48, 3, 8, 8) and split.heldout.shape == (12, 3, 8, 8)
    given = data.load("folder", tmp_path / "two", 8)
    assert given.train.shape == given.heldout.shape == (60, 3, 8, 8)
    for images in (split, given):
        white = images.heldout_labels == images.classes.index("white")
        assert (images.heldout[white] == 255).all() and (images.heldout[~white] == 0).all()
    with pytest.raises(data.DataError, match="no class folders with images"):
        data.load("folder", tmp_path / "one" / "black", 8)


@pytest.mark.parametrize(("name", "channels", "size"), [("digits", 1, 8), ("stl10", 3, 96)])
def test_augmentations_differ_between_views_and_repeat_under_a_seed(name, channels, size):
    images = torch.rand(4, channels, size, size)
    augmentation = make_augmentation(name, size)

    def views():
        torch.manual_seed(3)
        return augmentation(images), augmentation(images)

    first, second = views()
    assert first.shape == images.shape and first.isfinite().all()
    assert not torch.equal(first, second)
    assert_same(views(), (first, second))


# Settings


def test_settings_come_from_the_preset_then_quick_then_the_command():
    assert make_config({"data": "stl10"}).image_size == PRESETS["stl10"]["image_size"]
    assert make_config({}, quick=True).epochs < make_config({}).epochs
    assert make_config({"epochs": 17}, quick=True).epochs == 17
    resolved = make_config({})
    assert "auto" not in (resolved.device, resolved.precision)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"device": "meta"}, "device must be cpu or cuda"),
        ({"device": "toaster"}, "device 'toaster' is unknown"),
        ({"data": "mnist"}, "data must be one of digits"),
        ({"colour": 1}, "unknown settings: colour"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(ValueError, match=message):
        make_config(given)


def test_a_batch_larger_than_the_data_is_an_error(capsys):
    with pytest.raises(ValueError, match="batch_size 101 exceeds 100 images"):
        make_trainer(batch_size=101)
