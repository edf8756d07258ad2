"""What the examples share: checkpoints that survive a kill, and checks before and during a run."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.common import checkpoint
from examples.common.guards import (
    NonFiniteLoss,
    OutputError,
    check_finite,
    check_finite_weights,
    check_output_folder,
)
from examples.common.process import ProcessError, ask, finished
from tools.soak import differences


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_dies_leaves_the_last_checkpoint(tmp_path, monkeypatch, call):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"kind": "test", "epoch": 1})

    def die(*_):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, call, die)
        checkpoint.save(path, {"kind": "test", "epoch": 2})
    assert checkpoint.load(path, "test") == {"kind": "test", "epoch": 1}
    checkpoint.save(path, {"kind": "test", "epoch": 3})
    assert checkpoint.load(path, "test") == {"kind": "test", "epoch": 3}


def test_a_folder_that_can_be_written_is_left_empty(tmp_path):
    folder = tmp_path / "runs" / "one"
    check_output_folder(folder, 2**20)
    assert folder.is_dir() and not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file" / "runs", Path("/proc/runs")):
        with pytest.raises(OutputError, match=f"^{folder} cannot be written.*--out"):
            check_output_folder(folder, 1)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_is_said_with_what_is_there_and_what_is_needed(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OutputError, match=r"of free disk, and this run needs 1\d{6}\.\d GiB"):
        check_output_folder(tmp_path, free + 2**50)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_quota_is_met_by_really_taking_the_room(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))  # Python ignores its signal
    try:
        with pytest.raises(OutputError, match=r"cannot be written with 2\.0 MiB"):
            check_output_folder(tmp_path, 2**21)
        check_output_folder(tmp_path, 2**19)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_names_step_ids_and_checkpoint(loss, tmp_path):
    ids = torch.arange(100, 140)
    with pytest.raises(NonFiniteLoss) as stopped:
        check_finite(loss, 17, ids, Path("runs/checkpoint.pt"))
    message = str(stopped.value)
    assert f"the loss is {loss} at step 17" in message
    assert "100, 101, 102," in message and "(40 in all)" in message
    assert message.endswith("the last good checkpoint is runs/checkpoint.pt")
    record = json.loads(stopped.value.save(tmp_path).read_text())
    assert record["step"] == 17 and record["ids"] == ids.tolist()
    assert record["checkpoint"] == "runs/checkpoint.pt"


def test_finite_losses_and_weights_pass_and_spoiled_weights_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_finite(0.5, 1, [0], None)
    check_finite_weights(model, 1, [0], None)
    model[1].running_var[1] = torch.inf
    with pytest.raises(NonFiniteLoss, match=r"weights 1\.running_var .* none was written yet"):
        check_finite_weights(model, 1, [0], None)


def test_soak_tells_what_differs_bit_by_bit():
    state = {"weights": [torch.tensor([0.0, torch.nan])], "step": torch.tensor(1.0), "seconds": 1.0}
    same = {"weights": [torch.tensor([0.0, torch.nan])], "step": torch.tensor(1.0), "seconds": 2.0}
    assert not list(differences(state, same))
    other = {"weights": [torch.tensor([-0.0, torch.nan])], "step": 1.0, "more": None}
    assert list(differences(state, other)) == ["step", "weights[0]"]


def test_a_process_that_fails_is_named(capfd):
    with pytest.raises(ProcessError, match="the eager side failed; its message is above"):
        ask("examples.common.nothing", {"some": "job"}, "the eager side")
    assert "No module named" in capfd.readouterr().err


def test_a_result_counts_only_if_it_was_written_whole(tmp_path):
    path = tmp_path / "result.json"
    assert finished(path) is None
    path.write_text('{"a": 1')
    assert finished(path) is None
    path.write_text('{"a": 1}')
    assert finished(path) == {"a": 1}
