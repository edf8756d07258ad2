"""The MoCo example: a whole run, its losses by hand, queue and momentum, exact resume, refusals."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("kornia")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples.common import checkpoint
from examples.common.guards import NonFiniteLoss
from examples.common.images import memory, report
from examples.common.images.learner import Views
from examples.common.images.memory import LossSize
from examples.moco.__main__ import main
from examples.moco.config import make_config
from examples.moco.model import shuffled
from examples.moco.train import Trainer, loss_facts
from python_tests.examples.simclr_runs import SMALL, assert_same, outcome
from tools.soak import ROOT

VERSIONS = ["v2", "v3"]


def make_trainer(version, groups=None, **settings):
    images = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    of_version = {"queue": 70, "key_parts": 4} if version == "v2" else {}
    given = {**SMALL, "version": version, "momentum": 0.9, **of_version, **settings}
    return Trainer(make_config(given), images, groups)


# A whole run


def test_quick_run_writes_a_report_and_does_not_train_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "measure", lambda size, _: (size.keys, ""))
    monkeypatch.setattr(report.plots, "plot_embeddings", lambda *_: None)
    arguments = ["--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*arguments, "--monitor", "2"]) == 0
    printed = capsys.readouterr().out
    for word in ("raw pixels", "before training", "after training", "mAP", "5-shot probe"):
        assert word in printed
    for name in ("loss.png", "monitors.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["settings"]["version"] == "v2" and len(record["history"]) == 2
    assert [loss["measured_bytes"] for loss in record["loss_memory"]] == [1024, 65536]
    assert 0.5 < record["history"][1]["k-NN accuracy"] <= 1

    monkeypatch.setattr(Trainer, "train_epoch", None)
    assert main([*arguments, "--no-report"]) == 0
    assert "resumed" in capsys.readouterr().out


def test_quick_run_of_v3(tmp_path, capsys):
    assert main(["--version", "v3", "--quick", "--no-report", "--out", str(tmp_path)]) == 0
    assert "trained: " in capsys.readouterr().out


@pytest.mark.parametrize("version", VERSIONS)
def test_training_finds_the_key_of_a_query(version):
    trainer = make_trainer(version, epochs=8, learning_rate=1e-2, momentum=0.5)
    trainer.augmentation = lambda images: images
    for _ in range(8):
        trainer.train_epoch()
    alike = loss_facts(trainer.config, 16384).all_alike
    assert min(epoch["loss"] for epoch in trainer.history[-3:]) < alike - 0.5


@pytest.mark.parametrize("version", VERSIONS)
def test_autocast_reaches_queries_and_keys(version):
    trainer = make_trainer(version, precision="bfloat16")
    trainer.train_epoch()
    assert {x.dtype for x in trainer.embeddings} == {torch.bfloat16}
    assert math.isfinite(trainer.history[0]["loss"])


def test_what_the_report_says_of_the_loss():
    v2, v3 = (make_config({"version": version}) for version in VERSIONS)
    assert loss_facts(v2, 16384).all_alike == math.log(1 + 1024)
    assert loss_facts(v3, 16384).all_alike == 2 * 2 * 0.2 * math.log(256)
    for name, keys in (("nt_xent", 16), ("queue", 50), ("keys", 8)):
        size = LossSize(name, 8, 8 if name != "nt_xent" else 16, keys, 4, 0.2)
        held = {"nt_xent": 16, "queue": 8 + 8 + 50, "keys": 16}[name]
        assert memory._step(size, "cpu") == held * 4 * 4


# Losses


def batch(images=32):
    views = torch.rand(2, images, 1, 8, 8, dtype=torch.float64)
    return Views(views[0], views[1], torch.arange(images) // 2)


def test_the_loss_of_v2_is_the_papers():
    model = make_trainer("v2", key_parts=1).model.double().train()
    model.queue.push(torch.randn(50, 8).double(), torch.arange(50))
    views = batch()
    loss, _ = model.loss(views)
    query, key = model(views.first), model.key(views.second)
    q, k, queue = (F.normalize(x) for x in (query, key, model.queue.keys))
    positive, negative = (q * k).sum(1, keepdim=True), q @ queue.T
    same = views.ids[:, None] == model.queue.labels
    assert same.any()
    logits = torch.cat([positive, negative.masked_fill(same, -torch.inf)], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(32, dtype=torch.int64))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(model.encoder.parameters())
    ours, textbook = (torch.autograd.grad(x, parameters) for x in (loss, expected))
    torch.testing.assert_close(ours, textbook, rtol=1e-9, atol=1e-12)


def test_the_loss_of_v3_is_the_papers():
    model = make_trainer("v3").model.double().train()
    views = batch()._replace(ids=torch.arange(32))
    loss, _ = model.loss(views)
    query = [F.normalize(model.predictor(model(view))) for view in views[:2]]
    key = [F.normalize(model.key(view)) for view in views[:2]]
    rows = torch.arange(32)
    both = [F.cross_entropy(q @ k.T / 0.2, rows) for q, k in zip(query, key[::-1], strict=True)]
    expected = 2 * 0.2 * (both[0] + both[1])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = [*model.encoder.parameters(), *model.predictor.parameters()]
    ours, textbook = (torch.autograd.grad(x, parameters) for x in (loss, expected))
    torch.testing.assert_close(ours, textbook, rtol=1e-9, atol=1e-12)


def test_images_of_one_group_are_no_negatives_of_each_other():
    model = make_trainer("v3").model.double().train()
    views = batch()
    alone = model.loss(views._replace(ids=torch.arange(32)))[0]
    in_pairs = model.loss(views)[0]
    assert in_pairs < alone
    assert model.loss(views._replace(ids=torch.zeros(32, dtype=torch.int64)))[0] == 0


# Queue and momentum


def test_the_queue_has_the_newest_keys_with_the_ids_of_their_images():
    trainer = make_trainer("v2", groups=torch.arange(100) // 4)
    seen, ids = [], []
    for step in range(4):
        chosen = torch.arange(32) + 10 * step
        trainer.train_step(chosen)
        seen.append(trainer.embeddings[1])
        ids.append(chosen // 4)
    assert len(trainer.model.queue) == 70
    assert torch.equal(trainer.model.queue.keys, torch.cat(seen)[-70:])
    assert torch.equal(trainer.model.queue.labels, torch.cat(ids)[-70:])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_key_encoder_follows_and_is_not_trained(version):
    trainer = make_trainer(version, epochs=2)
    before = [weight.clone() for weight in trainer.model.key.parameters()]
    for step in range(2):
        trainer.train_step(torch.arange(32))
        momentum = 0.9
        if version == "v3":  # from 0.9 to 1 in the run's 6 steps
            momentum = 1 - 0.1 * (math.cos(math.pi * step / 6) + 1) / 2
        query = [*trainer.model.encoder.parameters(), *trainer.model.head.parameters()]
        for old, own, new in zip(before, trainer.model.key.parameters(), query, strict=True):
            torch.testing.assert_close(own, momentum * old + (1 - momentum) * new.detach())
        before = [weight.clone() for weight in trainer.model.key.parameters()]
    given = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not given & {id(p) for p in trainer.model.key.parameters()}


def test_keys_are_normalised_in_parts_and_come_back_in_order():
    images = torch.randn(12, 5)
    assert torch.equal(shuffled(nn.Identity(), images, 4), images)
    norm = nn.BatchNorm1d(5, affine=False)
    whole, parts = norm(images), shuffled(norm, images, 3)
    assert not torch.allclose(whole, parts)
    torch.testing.assert_close(parts.sum(0), torch.zeros(5), atol=1e-5, rtol=0)
    assert not torch.equal(parts, shuffled(norm, images, 3))


# Checkpoints


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_killed_in_an_epoch_and_resumed_ends_as_an_unbroken_one(tmp_path, version):
    whole = make_trainer(version)
    whole.run(tmp_path / "whole.pt")

    path = tmp_path / "checkpoint.pt"
    first = make_trainer(version)
    for _ in range(2):
        first.train_epoch()
    checkpoint.save(path, first.state_dict())
    with pytest.raises(KeyboardInterrupt):
        first.train_epoch(interrupt)

    second = make_trainer(version)
    torch.manual_seed(999)
    second.resume(path)
    second.run(path)
    assert_same(outcome(second), outcome(whole))
    kept = {"v2": {"queue.keys", "queue.labels", "key.step"}, "v3": {"key.step"}}[version]
    assert kept < outcome(second)["model"].keys()
    assert int(outcome(second)["model"]["key.step"]) == 4 * 3
    with pytest.raises(checkpoint.CheckpointError, match=r"momentum is 0\.9 there and 0\.8 here"):
        make_trainer(version, momentum=0.8).resume(path)


def interrupt(loss):
    raise KeyboardInterrupt


def test_a_process_killed_in_an_epoch_ends_bitwise_as_an_unbroken_one(tmp_path, capsys):
    run = {"width": 4, "stages": 2, "batch-size": 128, "epochs": 6, "device": "cpu"}
    options = ["--no-report", *(f"--{name}={value}" for name, value in run.items())]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*options, "--out", str(whole)]) == 0
    command = [sys.executable, "-m", "examples.moco", *options, "--out", str(broken)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=ROOT, env=one_thread, stderr=subprocess.DEVNULL)
    while not (broken / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main([*options, "--out", str(broken)]) == 0
    assert "resumed" in capsys.readouterr().out
    ended = [checkpoint.load(folder / "checkpoint.pt", "MoCo") for folder in (whole, broken)]
    assert ended[0]["model"]["queue.count"] == 1024
    assert_same(ended[1], ended[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_loss_that_is_not_finite_leaves_queue_and_key_encoder_alone(tmp_path, version):
    trainer = make_trainer(version, epochs=1, batch_size=100, norm="group")
    trainer.run(tmp_path / "checkpoint.pt")
    good = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.images[41] = torch.nan
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step 2"):
        trainer.train_epoch()
    assert_same(dict(trainer.model.state_dict()), good)


# Settings


@pytest.mark.parametrize(("wrong", "message"), [
    ("--version=v3 --queue=64", "queue must be 0 in v3, which has none, got 64"),
    ("--version=v3 --key-parts=2", "key_parts must be 1 in v3, got 2"),
    ("--queue=0", "queue must be at least 1 in v2, got 0"),
    ("--momentum=1.5", "momentum must be in [0, 1], got 1.5"),
    ("--momentum=nan", "momentum must be in [0, 1], got nan"),
    ("--batch-size=16 --key-parts=9", "two of 16 images in each part, got 9"),
    ("--temperature=0", "temperature must be positive, got 0.0"),
    ("--data=cifar10", "--data cifar10 needs --root PATH, the folder that holds the images"),
    ("--batch-size=2000", "batch_size 2000 exceeds 1297 images"),
])  # fmt: skip
def test_wrong_settings_end_in_one_line(tmp_path, capsys, wrong, message):
    assert main([*wrong.split(), "--quick", "--out", str(tmp_path)]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("python -m examples.moco: ") and last.endswith(message)
    assert not list(tmp_path.iterdir())


def test_each_version_has_its_defaults():
    assert make_config({"version": "v3"}).queue == 0
    large = {version: make_config({"data": "stl10", "version": version}) for version in VERSIONS}
    assert (large["v2"].queue, large["v2"].momentum) == (65536, 0.999)
    assert (large["v3"].queue, large["v3"].momentum) == (0, 0.99)
    assert make_config({"version": "v3", "momentum": 0.5}).momentum == 0.5
