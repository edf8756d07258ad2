"""The table of methods: all rows, each loss by hand, alike beginnings, exact resume."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("kornia")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples.common import checkpoint
from examples.common.images.data import Images
from examples.common.images.learner import Views
from examples.methods import __main__ as command
from examples.methods import arm, scores
from examples.methods.catalogue import METHODS
from examples.methods.config import make_config
from examples.methods.train import Trainer
from python_tests.examples.simclr_runs import SMALL, assert_same, outcome


def make_trainer(method, **settings):
    random = torch.Generator().manual_seed(0)
    images = torch.rand(100, 1, 8, 8, generator=random)
    labels = torch.randint(10, (100,), generator=random)
    data = Images(images, images, labels, [], train_labels=labels)
    return Trainer(make_config({**SMALL, "method": method, **settings}), data)


# The table


def test_quick_writes_all_rows_and_does_not_train_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(arm, "PROBE_STEPS", 1)
    monkeypatch.setattr(scores, "DRAWS", 1)
    arguments = ["--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    titles = [row.split("|")[1].strip() for row in rows]
    assert titles == ["", *(method.title for method in METHODS.values()), "untrained"]
    assert (tmp_path / "methods.md").read_text() in printed + "\n"
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "methods.json").read_text())["digits"]
    assert list(results) == list(METHODS)
    for result in results.values():
        assert result["steps"] == 5 and result["seconds_a_step"] > 0
        assert 0.2 < result["scores"]["k-NN"] < 1 and 0 < result["scores"]["mAP"] < 1
        assert all(map(math.isfinite, result["health"]["embeddings"].values()))
        assert result["untrained"] == results["simclr"]["untrained"]

    monkeypatch.setattr(arm, "run", None)
    assert command.main(arguments) == 0
    assert capsys.readouterr().out == printed


def test_a_run_that_collapses_is_shown():
    trainer = make_trainer("simsiam")
    torch.nn.init.zeros_(trainer.model.head[-2].weight)
    heldout = Images(trainer.images, trainer.images, torch.arange(100) % 10, [])
    found = scores.health(trainer.model, heldout, trainer.augmentation)
    assert "collapsed" in found["collapsed"] and found["embeddings"]["std"] == 0


@pytest.mark.parametrize("wrong", ["--epochs=0", "--seed=-1", "--device=toaster"])
def test_wrong_settings_end_in_one_line(tmp_path, capsys, wrong):
    assert command.main(["--quick", wrong, "--out", str(tmp_path)]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    name = wrong.removeprefix("--").split("=")[0]
    assert last.startswith(f"python -m examples.methods: {name}")
    assert not list(tmp_path.iterdir())


# Losses


def gram(x):
    return F.normalize(x) @ F.normalize(x).T


def others(rows):
    """Cross-entropies leave out a row's similarity to itself."""
    return torch.zeros(rows, rows, dtype=torch.float64).fill_diagonal_(-torch.inf)


def nt_xent(a, b, labels):
    rows = 2 * len(a)
    logits = gram(torch.cat([a, b])) / 0.1 + others(rows)
    return F.cross_entropy(logits, torch.arange(rows).roll(len(a)))


def decoupled(a, b, labels):
    rows, batch = 2 * len(a), len(a)
    logits = gram(torch.cat([a, b])) / 0.1
    image = torch.arange(batch).repeat(2)
    negatives = logits.masked_fill(image[:, None] == image, -torch.inf)
    positives = logits[torch.arange(rows), torch.arange(rows).roll(batch)]
    return (negatives.logsumexp(1) - positives).mean()


def supcon(a, b, labels):
    both, rows = torch.cat([labels, labels]), 2 * len(a)
    log_probabilities = (gram(torch.cat([a, b])) / 0.1 + others(rows)).log_softmax(1)
    positive = (both[:, None] == both) & ~torch.eye(rows, dtype=torch.bool)
    chosen = log_probabilities.masked_fill(~positive, 0)
    return -(chosen.sum(1) / positive.sum(1)).mean()


def vicreg(a, b, labels):
    total = 25 * F.mse_loss(a, b)
    for x in (a, b):
        covariance = torch.cov(x.T)
        spread = (covariance.diagonal() + 1e-4).sqrt()
        total = total + 25 * F.relu(1 - spread).mean() / 2
        away = covariance - covariance.diagonal().diag()
        total = total + away.square().sum() / x.shape[1]
    return total


def simsiam(model, a, b):
    cosines = [
        F.cosine_similarity(model.predictor(one), other.detach()).mean()
        for one, other in ((a, b), (b, a))
    ]
    return -(cosines[0] + cosines[1]) / 2


def byol(model, views):
    pairs = ((views.first, views.second), (views.second, views.first))
    distances = [
        F.normalize(model.predictor(model(view))) - F.normalize(model.target(other))
        for view, other in pairs
    ]
    return sum(distance.square().sum(1).mean() for distance in distances)


@pytest.mark.parametrize("method", ["simclr", "supcon", "dcl", "vicreg", "simsiam", "byol"])
def test_the_loss_is_the_papers(method):
    model = make_trainer(method).model.double().train()
    views = torch.rand(2, 32, 1, 8, 8, dtype=torch.float64)
    batch = Views(views[0], views[1], torch.arange(32), torch.arange(32) % 5)
    loss, _ = model.loss(batch)
    if method == "byol":
        expected = byol(model, batch)
    elif method == "simsiam":
        expected = simsiam(model, model(batch.first), model(batch.second))
    else:
        textbook = {"simclr": nt_xent, "supcon": supcon, "dcl": decoupled, "vicreg": vicreg}
        expected = textbook[method](*model(views.flatten(0, 1)).chunk(2), batch.labels)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(x, parameters) for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


# One loop


def test_all_begin_with_the_same_encoder_and_see_the_same_views():
    begun = []
    for method in METHODS:
        trainer = make_trainer(method)
        begun.append((dict(trainer.model.encoder.state_dict()), trainer._views(torch.arange(8))))
    for other in begun[1:]:
        assert_same(other, begun[0])


def test_only_the_supervised_method_sees_labels():
    seen = {method: make_trainer(method).labels is not None for method in METHODS}
    assert [method for method, labels in seen.items() if labels] == ["supcon"]


@pytest.mark.parametrize("method", ["byol", "moco-v2"])
def test_a_run_killed_in_an_epoch_and_resumed_ends_as_an_unbroken_one(tmp_path, method):
    whole = make_trainer(method)
    whole.run(tmp_path / "whole.pt")
    path = tmp_path / "checkpoint.pt"
    first = make_trainer(method)
    first.train_epoch()
    checkpoint.save(path, first.state_dict())
    with pytest.raises(KeyboardInterrupt):
        first.train_epoch(interrupt)
    second = make_trainer(method)
    second.resume(path)
    second.run(path)
    assert_same(outcome(second), outcome(whole))


def interrupt(loss):
    raise KeyboardInterrupt
