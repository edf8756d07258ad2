"""One run in one folder: a lock that names its holder, and dies with it."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fcntl")

from examples.common.checkpoint import save
from examples.common.fingerprint import fingerprint
from examples.common.lock import NAME, LockError, hold

HOLDER = """
import pathlib, sys
from examples.common.lock import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_run_is_told_who_has_the_folder(tmp_path):
    process = start(tmp_path)
    try:
        said = f"in use by another run .pid {process.pid}, host {platform.node()}, since 20"
        with pytest.raises(LockError, match=said), hold(tmp_path):
            pass
        assert json.loads((tmp_path / NAME).read_text())["pid"] == process.pid
    finally:
        process.communicate()
    with hold(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_run_is_taken_over_and_its_halves_deleted(tmp_path, capsys):
    process = start(tmp_path)
    process.kill()
    process.communicate()
    (tmp_path / "checkpoint.pt.1-ab.partial").touch()
    (tmp_path / "mine.partial").touch()
    with hold(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"its run has died (pid {process.pid}, " in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.partial"]


def test_whether_a_run_of_another_host_lives_is_not_guessed(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "then"}))
    said = r"on another host .*elsewhere.* delete .*run\.lock"
    with pytest.raises(LockError, match=said), hold(tmp_path):
        pass
    assert (tmp_path / NAME).exists()


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_lock_that_names_nobody_holds_nobody_up(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with hold(tmp_path):
        pass


def test_a_run_that_fails_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_two_saves_at_once_write_two_files(tmp_path, monkeypatch):
    """The second begins and ends in the middle of the first."""
    path, write, names = tmp_path / "checkpoint.pt", torch.save, []

    def interleaved(state, file):
        names.append(file.name)
        if len(names) == 1:
            save(path, {"run": 2})
        write(state, file)

    monkeypatch.setattr(torch, "save", interleaved)
    save(path, {"run": 1})
    assert len(set(names)) == 2
    assert torch.load(path) == {"run": 1}
    assert [left.name for left in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_fingerprints_tell_values_shapes_types_and_borders_apart():
    x = torch.arange(6.0)
    others = [[x + 1], [x.view(2, 3)], [x.int()], [x.bfloat16()], [x[:3], x[3:]], [x, None], []]
    words = [fingerprint(parts) for parts in ([x], *others, ["ab", "c"], ["a", "bc"], [b"ab", "c"])]
    assert len(set(words)) == len(words)
    strided = torch.stack([x, x], 1)[:, 0]
    assert fingerprint([strided]) == fingerprint([x.clone()]) == words[0]
