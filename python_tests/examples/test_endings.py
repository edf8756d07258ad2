"""Both examples end in one line of their own, whatever they meet, and nothing good is lost."""

import errno
import json
import os
import pickle
import sys

import pytest
import torch

pytest.importorskip("kornia")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("tokenizers")
pytest.importorskip("resource")

import resource

from examples.common import checkpoint, command
from examples.common.guards import OutputError, one_line
from examples.common.lock import NAME, hold
from examples.sbert import __main__ as sbert
from examples.sbert import index
from examples.sbert.encoder import EncoderError, load_encoder
from examples.sbert.index import DOCUMENTS, INDEX, SearchError, export, search
from examples.simclr import __main__ as simclr
from python_tests.examples.test_sbert import arguments, make_pairs, make_trainer, texts, write_pairs

COMMANDS = ["simclr", "sbert"]
ONE_EPOCH = {"epochs": 1, "hard_epochs": 0}


def run(example, folder, *more, report=False):
    """Exit status of a short training in ``folder / "run"``; SBERT's always reports."""
    if example == "simclr":
        small = ["--quick", "--device", "cpu", "--width", "4", "--epochs", "1"]
        small += ["--no-report"] * (not report)
        return simclr.main([*small, "--out", str(folder / "run"), *more])
    if not (folder / "pairs.tsv").exists():
        write_pairs(folder / "pairs.tsv", 120)
    return sbert.main(["train", *arguments(folder, **ONE_EPOCH), *more])


def said(capsys, example):
    """The one line that the example ended with, after its bar and its warnings."""
    *_, last = capsys.readouterr().err.splitlines()
    head = f"python -m examples.{example}: "
    assert last.startswith(head) and len(last) < 1000
    return last.removeprefix(head)


@pytest.fixture
def small_disk():
    """Calls write at most so many bytes into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores its signal
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Writing


@pytest.mark.parametrize("example", COMMANDS)
def test_a_disk_that_fills_up_in_mid_run(tmp_path, capsys, monkeypatch, small_disk, example):
    monkeypatch.setattr(command, "check_output_folder", lambda folder, _: folder.mkdir())
    small_disk(20_000)
    assert run(example, tmp_path) == 2
    assert "run/checkpoint.pt cannot be written (" in said(capsys, example)
    assert not list((tmp_path / "run").iterdir())


def test_a_disk_that_is_full_when_the_encoder_is_exported(tmp_path, small_disk):
    trainer, folder = make_trainer(), tmp_path / "encoder"
    export(trainer.encoder, [make_pairs()], tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    question = texts(1)[0][0]
    hits = search(question, tmp_path) if INDEX in before else None
    trainer.train_epoch()
    for most in (3000, max(map(len, before.values())) - 1):
        small_disk(most)
        with pytest.raises(OutputError, match=r"encoder cannot be written \("):
            export(trainer.encoder, [make_pairs()], tmp_path)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert hits is None or search(question, tmp_path) == hits


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, small_disk):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"kind": "test"})
    small_disk(2**14)
    with pytest.raises(OutputError, match=r"checkpoint\.pt cannot be written \("):
        checkpoint.save(path, {"kind": "test", "weights": torch.zeros(2**14)})
    assert checkpoint.load(path, "test") == {"kind": "test"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("example", COMMANDS)
def test_a_disk_that_is_full_when_the_report_is_written(tmp_path, capsys, monkeypatch, example):
    """What the operating system says names no file: the folder is named."""
    from examples.common.images import report as simclr_report
    from examples.sbert import report as sbert_report

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(simclr_report.plots, "draw_all", full)
    monkeypatch.setattr(simclr_report, "_loss_memory", lambda *_: {})
    monkeypatch.setattr(sbert_report.plots, "plot_training", full)
    assert run(example, tmp_path, report=True) == 2
    assert f"{tmp_path / 'run'} cannot be written (" in said(capsys, example)
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("example", COMMANDS)
def test_a_folder_in_use(tmp_path, capsys, example):
    pytest.importorskip("fcntl")
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run"):
        assert run(example, tmp_path, "--fresh") == 2
        assert "run is in use by another run (pid " in said(capsys, example)
    assert not (tmp_path / "run" / NAME).exists()


def test_a_message_is_one_line_and_says_something():
    assert one_line("a\n  b\n") == "a b" and one_line(KeyError()) == "KeyError"
    assert one_line("x" * 400) == "x" * 297 + "..."


# Checkpoints of another kind


def damage(path, how):
    if how == "empty":
        path.write_bytes(b"")
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"settings": 1}))
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        state = torch.load(path)
        del state[how]
        torch.save(state, path)


@pytest.mark.parametrize("example", COMMANDS)
def test_a_checkpoint_that_is_damaged(tmp_path, capsys, example):
    path = tmp_path / "run" / "checkpoint.pt"
    assert run(example, tmp_path) == 0
    state = torch.load(path)
    for how, expected in {
        "optimizer": "does not fit this run",
        "settings": "does not fit this run",
        "kind": "expected a checkpoint of",
        "tensor": "expected a checkpoint of",
        "truncated": "cannot be read as a checkpoint",
        "pickle": "cannot be read as a checkpoint",
        "empty": "cannot be read as a checkpoint",
        "folder": "cannot be read as a checkpoint",
    }.items():
        torch.save(state, path)
        damage(path, how)
        assert run(example, tmp_path) == 2
        message = said(capsys, example)
        assert expected in message and str(path) in message and "--fresh" in message


def test_a_checkpoint_of_the_other_example(tmp_path, capsys):
    for writer, reader, kinds in (
        ("simclr", "sbert", "SBERT, got one of SimCLR"),
        ("sbert", "simclr", "SimCLR, got one of SBERT"),
    ):
        folder = tmp_path / writer
        folder.mkdir()
        assert run(writer, folder) == 0
        assert run(reader, folder) == 2
        assert f"expected a checkpoint of {kinds}" in said(capsys, reader)


# The index


@pytest.fixture
def exported(tmp_path):
    pytest.importorskip("usearch")
    export(make_trainer().encoder, [make_pairs()], tmp_path)
    return tmp_path


def test_an_index_of_another_encoder_does_not_answer(exported):
    place, other = exported / "encoder", make_trainer(seed=1).encoder
    assert len(search("aro", exported, 3)) == 3
    other.save(place)
    with pytest.raises(SearchError, match=r"index\.usearch was made by another encoder"):
        search("aro", exported)
    assert load_encoder(place).fingerprint() == other.fingerprint()


@pytest.mark.parametrize("part", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("kept", [0, 50, -10])
def test_a_truncated_encoder(exported, capsys, part, kept):
    path = exported / "encoder" / part
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EncoderError, match="encoder holds a damaged encoder"):
        load_encoder(path.parent)
    assert sbert.main(["search", "what?", "--out", str(exported)]) == 2
    assert "holds a damaged encoder" in said(capsys, "sbert")


@pytest.mark.parametrize("part", [INDEX, DOCUMENTS])
@pytest.mark.parametrize("kept", [0, 50, -10])
def test_a_truncated_index(exported, capsys, part, kept):
    path = exported / "encoder" / part
    path.write_bytes(path.read_bytes()[:kept])
    assert sbert.main(["search", "what?", "--out", str(exported)]) == 2
    assert "index.usearch is damaged" in said(capsys, "sbert")


def test_how_many_hits(exported, capsys):
    for top in ("0", "-1"):
        assert sbert.main(["search", "aro", "--out", str(exported), "--top", top]) == 2
        assert said(capsys, "sbert") == f"top: expected at least 1, got {top}"
    assert sbert.main(["search", "aro", "--out", str(exported), "--top", "1000"]) == 0
    assert capsys.readouterr().out.count("row ") == 150


def test_a_killed_export_leaves_the_old_one_or_none(exported, monkeypatch):
    """And the next one clears away what it left."""
    for name in ("_write_index", "fingerprint"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(index, name, interrupt)
            export(make_trainer(seed=1).encoder, [make_pairs()], exported)
        assert len(search("aro", exported, 3)) == 3
    export(make_trainer(seed=1).encoder, [make_pairs()], exported)
    assert [path.name for path in exported.iterdir()] == ["encoder"]


def interrupt(*_):
    raise KeyboardInterrupt


# Data and numbers


@pytest.mark.parametrize(("added", "expected"), [
    (b"x" * 200_000 + b"\ty\n", "line 121: field larger than"),
    (b"a\tb\tc\n", "line 121: expected 2 columns, got 3"),
    (b"a\n", "line 121: expected 2 columns, got 1"),
    (b"a\tb\ncaf\xe9\tb\n", "line 122: expected UTF-8, got other bytes from character 4 on"),
    (b"\xff\xfea\0\tb\0\n", "line 121: expected UTF-8"),
], ids=["huge", "three", "one", "latin-1", "utf-16"])  # fmt: skip
def test_a_file_that_is_no_table_of_two_columns(tmp_path, capsys, added, expected):
    path = write_pairs(tmp_path / "pairs.tsv", 120)
    path.write_bytes(path.read_bytes() + added)
    assert run("sbert", tmp_path) == 2
    message = said(capsys, "sbert")
    assert str(path) in message and expected in message
    assert not (tmp_path / "run").exists()


def test_a_byte_order_mark_belongs_to_no_text(tmp_path):
    path = write_pairs(tmp_path / "pairs.tsv", 120)
    plain = sbert._corpus(sbert.make_config({"dataset": str(path)}))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    marked = sbert._corpus(sbert.make_config({"dataset": str(path)}))
    assert marked.train.queries == plain.train.queries


@pytest.mark.parametrize("name", ["typo.tsv", "some/typo.csv", "./typo", "/no/such/typo", "~/typo"])
def test_no_hub_is_asked_for_a_file_that_is_not_there(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert sbert.main(["train", "--dataset", name, "--out", str(tmp_path)]) == 2
    assert said(capsys, "sbert").endswith(f"got {name}: no such file")


@pytest.mark.parametrize(("example", "wrong"), [
    ("simclr", "--seed=-1"), ("simclr", f"--seed={2**63}"), ("simclr", "--weight-decay=nan"),
    ("simclr", "--stages=5"), ("simclr", "--stages=99"), ("simclr", "--monitor=-1"),
    ("sbert", "--seed=-1"), ("sbert", f"--seed={2**64}"), ("sbert", "--relative-margin=inf"),
    ("sbert", "--dim=1"),
])  # fmt: skip
def test_numbers_out_of_their_range(tmp_path, capsys, example, wrong):
    assert run(example, tmp_path, wrong) == 2
    name, _, value = wrong.removeprefix("--").partition("=")
    message = said(capsys, example)
    assert message.startswith(name.replace("-", "_")) and message.endswith(f"got {value}")


def test_numbers_that_do_not_go_together(tmp_path, capsys):
    assert run("sbert", tmp_path, "--encoder=transformer", "--heads=3") == 2
    assert said(capsys, "sbert") == "dim: expected a multiple of the 3 heads, got 32"
    assert sbert.main(["mine", *arguments(tmp_path), "--samples", "-1"]) == 2
    assert said(capsys, "sbert") == "samples: expected at least 0, got -1"


def test_the_comparison_trusts_no_side_of_other_images_or_of_a_killed_run(tmp_path, monkeypatch):
    from examples.common.images.data import load
    from examples.simclr import compare

    images, config = load("digits", None, 8), simclr.make_config({"width": 4}, quick=True)
    trained = []

    def arm(config, root, out):
        trained.append(out)
        model = compare.make_model(config, 1)
        checkpoint.save(out / "checkpoint.pt", {"kind": "SimCLR", "model": model.state_dict()})
        return {}

    monkeypatch.setattr(compare, "_arm", arm)
    monkeypatch.setattr(compare, "evaluate", lambda *_: {})
    other = images._replace(train=1 - images.train)
    for given, count in ((images, 1), (images, 1), (other, 2), (other, 2)):
        compare._train(config, given, None, tmp_path)
        assert len(trained) == count
    (done,) = tmp_path.rglob("arm.json")
    done.write_text(json.dumps({"settings": {}})[:-3])
    compare._train(config, other, None, tmp_path)
    assert len(trained) == 3
