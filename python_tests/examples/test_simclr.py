"""The SimCLR example: a whole run, its checkpoints, kills and what it refuses."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("kornia")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples.common import checkpoint
from examples.common.guards import NonFiniteLoss
from examples.common.images import memory, report
from examples.common.lock import hold
from examples.simclr.__main__ import main
from examples.simclr.config import make_config
from examples.simclr.train import Trainer
from python_tests.examples.simclr_runs import SMALL, assert_same, finished, make_trainer, outcome
from tools.soak import soak

# A whole run


def test_quick_run_writes_a_report_and_does_not_train_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "LARGE_BATCH", 1024)
    arguments = ["--quick", "--device", "cpu", "--monitor", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for word in ("raw pixels", "before training", "after training", "mAP", "5-shot probe"):
        assert word in printed
    for name in ("loss.png", "embeddings.png", "monitors.png"):
        assert str(tmp_path / name) in printed
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["scores"]["raw pixels"]["mAP"]["mean"] == pytest.approx(0.642, abs=0.005)
    assert record["scores"]["raw pixels"]["recall@1"]["mean"] == pytest.approx(0.98, abs=0.005)
    assert [loss["pairs"] for loss in record["loss_memory"]] == [256, 1024]
    assert record["loss_memory"][0]["dense_bytes_computed"] == 512 * 512 * 4
    assert len(record["history"]) == record["settings"]["epochs"]
    assert "linear probe" not in record["history"][0]
    assert 0.5 < record["history"][1]["k-NN accuracy"] <= 1

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


@pytest.mark.parametrize("chunk", [0, 16])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_weights(tmp_path, chunk):
    path = tmp_path / "checkpoint.pt"
    trainer = make_trainer(epochs=1, batch_size=100, chunk=chunk, norm="group")
    trainer.run(path)
    good = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.images[41] = torch.nan
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step 2") as stopped:
        trainer.train_epoch()
    assert sorted(stopped.value.ids) == list(range(100))
    assert stopped.value.checkpoint == path
    assert_same(dict(trainer.model.state_dict()), good)


def test_weights_that_a_gradient_spoiled_are_never_saved(tmp_path):
    trainer = make_trainer(batch_size=100)
    trainer.model.head[-1].weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteLoss, match=r"the weights .* are not finite at step 1"):
        trainer.run(tmp_path / "checkpoint.pt")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_all_ids_of_a_bad_batch(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "examples.common.images.train.make_augmentation",
        lambda *_: lambda images: images * torch.nan,
    )
    assert main(["--quick", "--width", "4", "--device", "cpu", "--out", str(tmp_path)]) == 3
    assert "stopped: the loss is nan at step 1; ids of its batch:" in capsys.readouterr().err
    record = json.loads((tmp_path / "nonfinite.json").read_text())
    assert len(set(record["ids"])) == 256 and record["checkpoint"] is None


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "train_epoch", None)
    (tmp_path / "file").touch()
    assert main(["--quick", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "disk_bytes", lambda self: 2**60)
    assert main(["--quick", "--out", str(tmp_path)]) == 2
    assert "of free disk, and this run needs" in capsys.readouterr().err


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
    assert_same(checkpoint.load(path, "SimCLR")["model"], uninterrupted["model"])


def interrupt(loss):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_runs_killed_twice_and_resumed_end_bitwise_as_an_unbroken_one(tmp_path):
    run = {"width": 4, "stages": 2, "batch-size": 640, "epochs": 10, "device": "cpu"}
    options = ["--no-report", *(f"--{name}={value}" for name, value in run.items())]
    assert "killed 2 times" in soak("examples.simclr", options, kills=2, seed=0, folder=tmp_path)


def test_half_a_file_beside_the_checkpoint_is_ignored(tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer = make_trainer(epochs=2)
    trainer.train_epoch()
    checkpoint.save(path, trainer.state_dict())
    for half in ("checkpoint.pt.partial", "checkpoint.pt.7-abc.partial"):
        path.with_name(half).write_bytes(path.read_bytes()[:1000])
    resumed = make_trainer(epochs=2)
    with hold(tmp_path):  # who has the folder may delete what dead runs left there
        resumed.resume(path)
        resumed.run(path)
    assert checkpoint.load(path, "SimCLR")["history"] == resumed.history
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
    other, grouped = make_trainer(), make_trainer(groups=torch.arange(100) // 2)
    other = Trainer(other.config, other.images.clone().index_fill_(0, torch.tensor([7]), 0.5))
    for trainer in (other, grouped):
        with pytest.raises(checkpoint.CheckpointError, match=r"run: images_sha256 is '\w{16}' t"):
            trainer.resume(path)


def test_the_command_refuses_and_starts_over_when_told(tmp_path, capsys):
    arguments = ["--quick", "--width", "4", "--epochs", "1", "--no-report", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "3"]) == 2
    assert "seed is 0 there and 3 here" in capsys.readouterr().err
    assert main([*arguments, "--seed", "3", "--fresh"]) == 0
    assert checkpoint.load(tmp_path / "checkpoint.pt", "SimCLR")["settings"]["seed"] == 3
