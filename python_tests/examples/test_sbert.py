"""The text example: a whole run, search, exact resume, a real kill, and what it refuses."""

import json
import random
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("tokenizers")

from examples.common import checkpoint
from examples.common.guards import NonFiniteLoss
from examples.sbert import data, report
from examples.sbert.__main__ import main
from examples.sbert.config import make_config
from examples.sbert.encoder import load_encoder
from examples.sbert.index import search
from examples.sbert.train import Trainer, check_encoder
from python_tests.examples.kills import killed_after_a_checkpoint
from python_tests.examples.test_simclr import assert_same

WORDS = [a + b for a in "bdfgklm" for b in ("aro", "eni", "ilu", "oto", "uka", "ywe")]
SMALL = {
    "dim": 32,
    "vocabulary": 512,
    "batch_size": 64,
    "epochs": 2,
    "hard_epochs": 2,
    "learning_rate": 0.05,
    "hard_learning_rate": 0.02,
    "device": "cpu",
}
TRANSFORMER = {"encoder": "transformer", "layers": 1, "heads": 2, "max_tokens": 16, "chunk": 24}


def texts(count):
    """Queries in one language and documents in another: no word is in both."""
    draw = random.Random(0)
    chosen = [draw.sample(range(len(WORDS)), 4) for _ in range(count)]
    queries = [" ".join(WORDS[i] for i in four) for four in chosen]
    return queries, [" ".join(WORDS[i][::-1] + "zz" for i in four) for four in chosen]


def write_pairs(path, count=300):
    path.write_text("\n".join("\t".join(pair) for pair in zip(*texts(count), strict=True)) + "\n")
    return path


def make_pairs(count=150):
    places = [f"row {i}" for i in range(count)]
    return data.Pairs(*texts(count), places, torch.arange(count) // 2)


def make_trainer(**settings):
    return Trainer(make_config({**SMALL, **settings}), make_pairs())


def arguments(folder, **settings):
    named = {"dataset": folder / "pairs.tsv", "out": folder / "run", **SMALL, **settings}
    return [x for name, value in named.items() for x in ("--" + name.replace("_", "-"), str(value))]


def outcome(trainer):
    """Everything but the time that it took."""
    return {name: value for name, value in trainer.state_dict().items() if name != "seconds"}


def finished(path, **settings):
    trainer = make_trainer(**settings)
    trainer.run(path)
    return outcome(trainer)


# A whole run


def test_a_run_learns_reports_answers_and_does_not_train_twice(tmp_path, capsys, monkeypatch):
    pytest.importorskip("usearch")
    write_pairs(tmp_path / "pairs.tsv")
    options = arguments(tmp_path, epochs=15, hard_epochs=5)
    assert main(["train", *options]) == 0
    printed = capsys.readouterr().out
    for word in ("TF-IDF", "before training", "in-batch negatives", "mined negatives", "ndcg@10"):
        assert word in printed
    folder = tmp_path / "run"
    for name in ("training.png", "embeddings.png"):
        assert str(folder / name) in printed
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "report.json").read_text())
    mrr = {name: scores["mrr@10"] for name, scores in record["scores"].items()}
    assert mrr["TF-IDF"] < 0.3  # no word of a query is in its document
    assert mrr["before training"] < 0.3 and mrr["in-batch negatives"] > 0.7
    assert mrr["mined negatives"] > 0.7
    assert len(record["history"]) == 20

    queries, documents = texts(300)
    assert main(["search", queries[7], "--out", str(folder), "--top", "3"]) == 0
    assert "row 8\n" in capsys.readouterr().out
    best = search(queries[7], folder, 1)[0]
    encoder = load_encoder(folder / "encoder")
    assert best.place == "row 8" and best.summary == queries[7]
    cosine = encoder.encode([queries[7]]) @ encoder.encode([documents[7]]).T
    assert best.score == pytest.approx(cosine.item(), abs=1e-5)

    assert main(["mine", *options, "--samples", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"by the encoder in {folder}" in printed
    for word in ("its positive", "above the ceiling", "chosen", "Filtering inside the search"):
        assert word in printed

    monkeypatch.setattr(Trainer, "train_epoch", None)
    monkeypatch.setattr(report.plots, "plot_embeddings", lambda *_: None)
    assert main(["train", *options]) == 0
    assert "resumed" in capsys.readouterr().out
    assert json.loads((folder / "report.json").read_text())["scores"] == record["scores"]


def test_mine_and_search_before_any_training(tmp_path, capsys):
    write_pairs(tmp_path / "pairs.tsv", 100)
    assert main(["mine", *arguments(tmp_path), "--samples", "1"]) == 0
    assert "an untrained encoder" in capsys.readouterr().out
    assert main(["search", "what?", "--out", str(tmp_path / "run")]) == 2
    assert "holds no index" in capsys.readouterr().err


def test_without_usearch_the_run_ends_well_and_search_says_what_to_do(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    write_pairs(tmp_path / "pairs.tsv", 120)
    assert main(["train", *arguments(tmp_path, epochs=1, hard_epochs=0)]) == 0
    assert "no index for `search`: pip install usearch" in capsys.readouterr().out
    assert main(["search", "what?", "--out", str(tmp_path / "run")]) == 2
    assert "pip install usearch" in capsys.readouterr().err


# The step


@pytest.mark.parametrize("hard", [False, True])
def test_the_loss_is_that_of_the_dense_softmax(hard):
    trainer = make_trainer()
    B, K, D = 6, 3, 5
    query, document = torch.randn(2, B, D, dtype=torch.float64)
    own = torch.randn(B * K, D, dtype=torch.float64) if hard else None
    groups = torch.tensor([0, 0, 1, 2, 2, 3])
    loss = trainer._contrast(query, document, own, groups=groups)

    def cosine(x, y):
        return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT / 0.05

    logits = cosine(query, document)
    others_of_group = (groups[:, None] == groups) & ~torch.eye(B, dtype=torch.bool)
    logits[others_of_group] = -torch.inf
    if hard:
        logits = torch.cat([logits, cosine(query[:, None], own.view(B, K, D))[:, 0]], 1)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.arange(B)))


def test_gradient_caching_gives_the_gradients_of_the_whole_batch():
    chosen, negatives = torch.arange(64), (torch.arange(256) % 150).view(64, 4)
    gradients = []
    for chunk in (0, 10):
        trainer = make_trainer(**{**TRANSFORMER, "chunk": chunk, "dropout": 0.0})
        texts = [trainer.queries[chosen], trainer.documents[chosen]]
        texts.append(trainer.documents[negatives.flatten()])
        trainer.encoder.double()
        trainer._backward(texts, chosen)
        gradients.append([p.grad for p in trainer.encoder.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_each_stage_warms_up_and_falls_to_zero():
    trainer = make_trainer(epochs=5, hard_epochs=5, warmup=0.2)
    half = 5 * trainer.steps
    rates = torch.tensor([trainer._rate(step) for step in range(2 * half)])
    for stage, peak in ((rates[:half], 1.0), (rates[half:], 0.4)):
        assert stage.max() == pytest.approx(peak)
        assert stage.argmax() in (half // 5 - 1, half // 5)
        assert stage[0] == pytest.approx(peak / (half // 5))
        assert stage[-1] < 0.1 * peak


# Checkpoints


@pytest.mark.parametrize("settings", [{}, TRANSFORMER], ids=["bag", "transformer"])
@pytest.mark.parametrize("epochs", [1, 3], ids=["in-batch", "mined"])
def test_resume_after_an_interrupted_epoch_is_exact(tmp_path, settings, epochs):
    def interrupt(loss):
        raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pt"
    first = make_trainer(**settings)
    for _ in range(epochs):
        first.train_epoch()
    checkpoint.save(path, first.state_dict())
    with pytest.raises(KeyboardInterrupt):
        first.train_epoch(interrupt)

    second = make_trainer(**settings)
    torch.manual_seed(999)
    second.resume(path)
    assert second.epoch == epochs
    second.run(path)
    assert_same(outcome(second), finished(tmp_path / "whole.pt", **settings))


@pytest.mark.slow
def test_resume_after_a_real_kill_is_exact(tmp_path):
    path, epochs = tmp_path / "checkpoint.pt", 60
    call = f"make_trainer(hard_epochs={epochs}).run(PATH)"
    killed_after_a_checkpoint("python_tests.examples.test_sbert", call, path)
    resumed = make_trainer(hard_epochs=epochs)
    resumed.resume(path)
    assert 1 <= resumed.epoch < epochs
    resumed.run(path)
    assert_same(outcome(resumed), finished(tmp_path / "whole.pt", hard_epochs=epochs))


def test_another_configuration_is_refused_and_nothing_overwritten(tmp_path, capsys):
    write_pairs(tmp_path / "pairs.tsv", 120)
    assert main(["train", *arguments(tmp_path, epochs=1, hard_epochs=0)]) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    capsys.readouterr()
    for change, said in (
        ({"temperature": 0.1}, "temperature is 0.05 there and 0.1 here"),
        ({"encoder": "transformer"}, "encoder is 'bag' there and 'transformer' here"),
    ):
        assert main(["train", *arguments(tmp_path, epochs=1, hard_epochs=0, **change)]) == 2
        assert said in capsys.readouterr().err
    write_pairs(tmp_path / "pairs.tsv", 121)
    assert main(["train", *arguments(tmp_path, epochs=1, hard_epochs=0)]) == 2
    assert "texts_sha256" in capsys.readouterr().err
    after = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert after == before


def test_a_loss_that_is_not_finite_names_step_pairs_and_checkpoint(tmp_path, capsys, monkeypatch):
    write_pairs(tmp_path / "pairs.tsv", 150)
    step = Trainer.train_step

    def poisoned(trainer, chosen, negatives=None):
        if trainer.scheduler.last_epoch == 3:
            trainer.encoder.network.vectors.data.fill_(torch.nan)
        return step(trainer, chosen, negatives)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    assert main(["train", *arguments(tmp_path)]) == 3
    said = capsys.readouterr().err
    saved = tmp_path / "run" / "checkpoint.pt"
    assert "at step 4" in said and f"last good checkpoint is {saved}" in said and "row " in said
    record = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert record["step"] == 4 and len(record["ids"]) == 64
    assert all(w.isfinite().all() for w in checkpoint.load(saved, "SBERT")["encoder"].values())


def test_the_gradient_cache_reports_a_loss_that_is_not_finite_alike():
    trainer = make_trainer(**TRANSFORMER)
    trainer.encoder.network.tokens.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteLoss, match="at step 1; ids of its batch: 3, 4, 5"):
        trainer.train_step(torch.arange(3, 67))


# Bad input


def test_said_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "run", None)
    write_pairs(tmp_path / "pairs.tsv", 60)
    assert main(["train", *arguments(tmp_path)]) == 2
    assert "batch_size: expected at most the" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    write_pairs(tmp_path / "pairs.tsv", 150)
    (tmp_path / "run").write_text("a file, no folder")
    assert main(["train", *arguments(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["train", *arguments(tmp_path, range_max=2)]) == 2
    assert "range_max: expected at least 4, got 2" in capsys.readouterr().err
    assert main(["train", *arguments(tmp_path, model="no-such-package")]) == 2
    assert "a folder or an installed package, got 'no-such-package'" in capsys.readouterr().err


def test_an_encoder_that_returns_something_else_is_refused():
    encoder = make_trainer().encoder
    check_encoder(encoder)
    for network, said in (
        (lambda ids: torch.zeros(len(ids), 3, 4), r"\[2, dim\] for 2 texts, got \[2, 3, 4\]"),
        (lambda ids: torch.zeros(len(ids) + 1, 4), r"got \[3, 4\]"),
        (lambda ids: (torch.zeros(len(ids), 4),), "got tuple"),
        (lambda ids: torch.full((len(ids), 4), torch.nan), "got NaN or infinity"),
    ):
        encoder.forward = network
        with pytest.raises(ValueError, match=said):
            check_encoder(encoder)
