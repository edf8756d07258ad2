"""Examples that torchrun shares among processes train as one process does."""

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("kornia")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("tokenizers")

from examples.common import checkpoint, command
from examples.common.ranks import ALONE, Ranks
from examples.methods.__main__ import main as methods
from examples.moco.config import make_config as moco_config
from examples.moco.train import Trainer as MoCoTrainer
from examples.sbert.config import make_config as sbert_config
from examples.sbert.train import Trainer as SbertTrainer
from examples.simclr.__main__ import main as simclr
from examples.simclr.config import make_config as simclr_config
from examples.simclr.train import Trainer as SimclrTrainer
from python_tests.distributed.processes import needs_gloo, run
from python_tests.examples import simclr_runs, test_moco, test_sbert

GROUPS = torch.arange(100) // 3
IMAGES = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LAYERS = {"norm": "group", "epochs": 2}  # batch norm sees a process's own part


def simclr_run(ranks, **settings):
    settings = simclr_config({**simclr_runs.SMALL, **LAYERS, **settings})
    return SimclrTrainer(settings, IMAGES, GROUPS, ranks)


def moco_run(ranks, version, **settings):
    given = {**test_moco.SMALL, **LAYERS, "version": version, "momentum": 0.9, **settings}
    return MoCoTrainer(moco_config(given), IMAGES, GROUPS, ranks)


def sbert_run(ranks, **settings):
    given = {**test_sbert.SMALL, "dropout": 0.0, **settings}
    return SbertTrainer(sbert_config(given), test_sbert.make_pairs(), ranks=ranks)


RUNS = {
    "simclr": (simclr_run, {}),
    "simclr in chunks": (simclr_run, {"chunk": 5}),
    "moco v2": (moco_run, {"version": "v2", "queue": 70, "key_parts": 1}),
    "moco v3": (moco_run, {"version": "v3"}),
    "sbert": (sbert_run, {"chunk": 0}),
    "sbert in chunks": (sbert_run, {"chunk": 7}),
}


def trained(ranks):
    """The losses of each run's epochs, and its weights."""
    found = {}
    for name, (make, settings) in RUNS.items():
        trainer = make(ranks, **settings)
        while trainer.epoch < trainer.epochs:
            trainer.train_epoch()
        state = trainer.state_dict()
        losses = [epoch["loss"] for epoch in trainer.history]
        found[name] = losses, state.get("model", state.get("encoder"))
    return found


def part_of_two(rank):
    return trained(Ranks(rank, 2))


@needs_gloo
def test_two_processes_train_as_one():
    both, alone = run(part_of_two, 2, timeout=60.0), trained(ALONE)
    for name, (losses, weights) in alone.items():
        assert len(losses) > 1 and losses[-1] != losses[0]
        for found in both:
            torch.testing.assert_close(
                found[name][0], losses, rtol=2e-5, atol=0, msg=f"{name}: {found[name][0]} {losses}"
            )
            for key, weight in weights.items():
                if isinstance(weight, torch.Tensor):
                    torch.testing.assert_close(
                        found[name][1][key], weight, rtol=1e-2, atol=2e-4, msg=f"{name}: {key}"
                    )


@needs_gloo
@pytest.mark.slow
def test_torchrun_trains_and_reports_once(tmp_path):
    def start(epochs):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        # Without the -- torchrun would take --monitor for an option of its own.
        command += ["-m", "--", "examples.simclr", "--quick", "--width", "4", "--device", "cpu"]
        command += ["--monitor", "1", "--epochs", str(epochs), "--out", str(tmp_path)]
        return subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    done = start(2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("after training") == done.stdout.count("Written:") == 1
    state = checkpoint.load(tmp_path / "checkpoint.pt", "SimCLR")
    assert len(state["history"]) == 2 and state["settings"]["processes"] == 2
    other = start(3)
    assert other.returncode != 0 and other.stderr.count("epochs is 2 there and 3 here") == 1
    assert not (tmp_path / "run.lock").exists()


def test_what_starts_processes_of_its_own_is_not_shared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = ["--quick", "--out", str(tmp_path / "run")]
    assert methods(out) == 2
    assert "methods: expected one process, got 2" in capsys.readouterr().err
    for option in ("compare", "download"):
        assert simclr([*out, f"--{option}"]) == 2
        assert f"{option}: expected one process, got 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def ending(error, monkeypatch, rank):
    """Exit status of a command that ends so."""

    def fail(options):
        raise error

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(command, "PATIENCE", 0.0)
    return command.ended(argparse.ArgumentParser("a command"), [], fail, (KeyError,))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_says_how_a_run_ended(monkeypatch, capsys, rank):
    for error, status, said in (
        (ValueError("epochs: wrong"), 2, "a command: epochs: wrong"),
        (KeyError("its own"), 2, "a command: 'its own'"),
        (RuntimeError("Connection closed by peer"), 1, "another process of this run has ended"),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
    ):
        assert ending(error, monkeypatch, rank) == status
        printed = capsys.readouterr().err
        assert said in printed if rank == 0 else not printed
    with pytest.raises(RuntimeError, match="a fault"):
        ending(RuntimeError("a fault"), monkeypatch, rank)


def test_what_a_terminal_cannot_show_is_replaced():
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    command.show("\u03a9 omega", terminal)
    assert terminal.buffer.getvalue() == b"? omega\n"


def test_the_eager_loss_is_that_of_one_process():
    with pytest.raises(ValueError, match="loss: expected cl_kernels with 2 processes, got eager"):
        simclr_run(Ranks(0, 2), loss="eager")
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 3 processes"):
        simclr_run(Ranks(0, 3))
