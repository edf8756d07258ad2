"""The CLIP example: a whole run, exact resume after a kill, several processes, refusals."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from examples.clip import evaluate, index
from examples.clip.__main__ import main
from examples.clip.glyphs import render
from examples.clip.train import Trainer
from examples.common import checkpoint
from examples.common.lock import hold
from examples.common.ranks import Ranks
from python_tests.distributed.processes import needs_gloo, run
from python_tests.examples.clip_runs import SMALL, arguments, make_trainer, outcome
from python_tests.examples.kills import killed_after_a_checkpoint
from tools.soak import differences

# A whole run


def test_a_run_learns_reports_answers_and_does_not_train_twice(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    settings = {"epochs": 8, "width": 8, "dim": 48, "chunk": 128, "learning_rate": 0.02}
    assert main(["train", *arguments(folder, **settings)]) == 0
    printed = capsys.readouterr().out
    for word in (
        "held-out fonts",
        "unseen combinations",
        "both at once",
        "name -> picture",
        "R@10",
    ):
        assert word in printed
    for name in ("loss.png", "answers.png"):
        assert str(folder / name) in printed
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "report.json").read_text())
    for row in record["zero_shot"]:
        assert row["clip"] > 5 * row["chance"] and row["exact"] <= row["best_exact"] <= 1
    assert record["losses"][-1] < 0.6 * record["losses"][0]
    assert len(record["history"]) == 8 and record["step_memory_bytes"] > 0

    assert main(["search", "greek capital letter omega", "--out", str(folder), "--top", "5"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^-?\d\.\d{3}  U\+", printed, re.MULTILINE)) == 5
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(Trainer, "train_epoch", None)
    assert main(["train", *arguments(folder, **settings)]) == 0
    assert "resumed" in capsys.readouterr().out
    again = json.loads((folder / "report.json").read_text())
    assert again["zero_shot"] == record["zero_shot"] and again["retrieval"] == record["retrieval"]


def test_an_index_answers_with_the_nearest_pictures_and_says_when_it_cannot(tmp_path, capsys):
    trainer = make_trainer(epochs=1)
    trainer.train_epoch()
    glyphs = render(SMALL["characters"])
    index.export(trainer.model, trainer.config, glyphs, tmp_path)
    there = index.load(tmp_path)
    hits = index.search("latin small letter a", there, 400)
    assert len(hits) == 200  # every character, once
    question = evaluate.embed_names(trainer.model.text, ["LATIN SMALL LETTER A"])
    scores = (question @ evaluate.embed_pictures(trainer.model.image, glyphs.pixels).T)[0]
    best = glyphs.characters[scores.argmax()]
    assert hits[0].name == glyphs.names[best]
    assert hits[0].score == pytest.approx(scores.max().item(), abs=1e-5)
    assert torch.equal(hits[0].pictures[0], glyphs.pixels[scores.argmax()])

    def refused(*options):
        assert main(["search", *options]) == 2
        message = capsys.readouterr().err
        assert message.startswith("python -m examples.clip: ") and message.count("\n") == 1
        return message

    asked = ["--out", str(tmp_path)]
    assert main(["search", "latin $\\frac{$ small letter \udcff xyzzy", "--top", "2", *asked]) == 0
    printed = capsys.readouterr().out
    assert "U+" in printed and "not in any name that was trained on: frac, xyzzy" in printed
    assert main(["search", "latin", "--image", str(tmp_path / "hits"), *asked]) == 0
    assert f"drawn in {tmp_path / 'hits.png'}" in capsys.readouterr().out
    assert (tmp_path / "hits.png").exists()
    assert "image: expected the name of a file" in refused(
        "latin", "--image", str(tmp_path), *asked
    )
    assert "top: expected at least 1, got 0" in refused("omega", "--top", "0", *asked)
    assert "got xyzzy, plugh" in refused("xyzzy plugh", *asked)
    assert "holds no index" in refused("omega", "--out", str(tmp_path / "nothing"))
    path = tmp_path / index.TOWERS / index.INDEX
    path.write_bytes(path.read_bytes()[:-1])
    assert "is damaged" in refused("omega", *asked)


# Checkpoints


def test_resume_after_a_real_kill_is_exact(tmp_path):
    path, epochs = tmp_path / "checkpoint.pt", 5
    call = f"make_trainer(epochs={epochs}).run(PATH)"
    killed_after_a_checkpoint("python_tests.examples.clip_runs", call, path)
    whole = make_trainer(epochs=epochs)
    whole.run(tmp_path / "whole.pt")
    resumed = make_trainer(epochs=epochs)
    resumed.resume(path)
    assert 1 <= resumed.epoch < epochs
    resumed.run(path)
    assert not list(differences(outcome(resumed), outcome(whole)))


def test_an_interrupted_epoch_counts_for_nothing(tmp_path):
    def interrupt(loss):
        raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pt"
    first = make_trainer(loss="siglip", chunk=0)
    first.train_epoch()
    checkpoint.save(path, first.state_dict())
    with pytest.raises(KeyboardInterrupt):
        first.train_epoch(interrupt)
    second = make_trainer(loss="siglip", chunk=0)
    second.resume(path)
    second.run(path)
    whole = make_trainer(loss="siglip", chunk=0)
    whole.run(tmp_path / "whole.pt")
    assert not list(differences(outcome(second), outcome(whole)))


# Several processes

SHARED = {"precision": "float64", "epochs": 1}
WAYS = [{}, {"gather": "ring"}, {"loss": "siglip", "gather": "ring"}, {"chunk": 0}]


def shared(rank):
    """The losses of a run, and the weights after it, for each way to share it."""
    found = []
    for way in WAYS:
        trainer = make_trainer(Ranks(rank, 2), **SHARED, **way)
        trainer.train_epoch()
        found.append((trainer.losses, trainer.model.state_dict()))
    return found


@needs_gloo
def test_two_processes_have_the_losses_of_one():
    both = run(shared, 2)
    for place, way in enumerate(WAYS):
        alone = make_trainer(**SHARED, **way)
        alone.train_epoch()
        for found in both:
            losses, weights = found[place]
            assert len(losses) > 4
            torch.testing.assert_close(losses, alone.losses, rtol=1e-9, atol=0)
            torch.testing.assert_close(
                dict(weights), dict(alone.model.state_dict()), rtol=1e-7, atol=1e-9
            )


@needs_gloo
@pytest.mark.slow
def test_torchrun_shares_a_run_that_one_process_may_not_resume(tmp_path, capfd):
    options = arguments(tmp_path / "two", **SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "examples.clip", "train", "--no-report", *options]
    subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    state = checkpoint.load(tmp_path / "two" / "checkpoint.pt", "CLIP")
    alone = make_trainer(**SHARED)
    alone.train_epoch()
    torch.testing.assert_close(state["losses"], alone.losses, rtol=1e-9, atol=0)
    assert not (tmp_path / "two" / "run.lock").exists()
    capfd.readouterr()
    assert main(["train", *options]) == 2
    assert "processes is 2 there and 1 here" in capfd.readouterr().err


# What is refused


@pytest.mark.parametrize(("wrong", "said"), [
    ({"batch_size": 1}, "batch_size: expected at least 2, got 1"),
    ({"batch_size": 100_000}, r"batch_size: expected at most the \d+ training pictures, got"),
    ({"stages": 9}, "stages: expected a pixel left of 32, which each halves, got 9"),
    ({"learning_rate": "nan"}, "learning_rate: expected a positive number, got nan"),
    ({"seed": -1}, "seed: expected at least 0 and below 2^63, got -1"),
    ({"warmup": 1.0}, r"warmup: expected a share in \[0, 1\), got 1.0"),
    ({"characters": 30}, "characters: expected enough for 10 pictures of each test, got 30"),
    ({"device": "tpu"}, "device"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_wrong_options_end_in_one_line(tmp_path, capsys, wrong, said):
    assert main(["train", *arguments(tmp_path / "run", **wrong)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m examples.clip: ") and message.count("\n") == 1
    assert re.search(said.replace("^", r"\^"), message)
    assert not (tmp_path / "run").exists()


def test_parts_of_a_batch_are_of_one_size():
    assert Ranks(1, 2).part(8) == slice(4, 8)
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 3 processes"):
        Ranks(0, 3).part(8)


def test_another_run_is_not_resumed_and_a_folder_in_use_not_taken(tmp_path, capsys):
    trainer = make_trainer(epochs=1)
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", trainer.state_dict())
    assert main(["train", *arguments(tmp_path / "run", epochs=1, loss="siglip")]) == 2
    assert "loss is 'clip' there and 'siglip' here" in capsys.readouterr().err
    with hold(tmp_path / "run"):
        assert main(["train", *arguments(tmp_path / "run", epochs=1)]) == 2
    assert "is in use by another run" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "backward", lambda self, chosen: float("nan"))
    assert main(["train", *arguments(tmp_path / "run", epochs=1)]) == 3
    assert "stopped: the loss is nan at step 1" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "run" / "nonfinite.json").read_text())["ids"]) == 256
