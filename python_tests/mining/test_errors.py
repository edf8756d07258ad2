"""Bad arguments of mining raise before any work, naming what was expected and what came."""

import pytest
import torch

from cl_kernels import CSR, PairFilter
from cl_kernels.mining import MiningSchedule, mine_hard_negatives
from cl_kernels.mining import negatives as module

QUERY, CORPUS, POSITIVES = torch.randn(4, 3), torch.randn(6, 3), torch.arange(4)


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Neither positives are scored nor the corpus searched."""

    def refuse(*_, **__):
        raise AssertionError("work was done")

    monkeypatch.setattr(module, "topk", refuse)
    monkeypatch.setattr(module, "pair_scores", refuse)


def offsets(*values):
    return torch.tensor(values)


BAD = [
    ("query", [[1.0]], TypeError, "a tensor, got list"),
    ("query", torch.randn(4), ValueError, r"\[rows, width >= 1\], got shape \[4\]"),
    ("corpus", torch.randn(6, 2), ValueError, "the width of query, 3, got 2"),
    ("corpus", CORPUS.to("meta"), ValueError, "device of query, cpu, got meta"),
    ("positives", torch.arange(3), ValueError, "each of the 4 queries"),
    ("positives", torch.tensor([0, 1, 2, 6]), ValueError, r"in \[0, 6\), got 0 to 6"),
    ("positives", POSITIVES.float(), TypeError, "an integer tensor, got torch.float32"),
    ("positives", None, TypeError, "a CSR .* got NoneType"),
    ("positives", CSR(offsets(0, 1, 2), POSITIVES), ValueError, "offsets of length 5"),
    ("positives", CSR(offsets(0, 3, 2, 3, 4), POSITIVES), ValueError, "rising offsets"),
    ("num_negatives", 0, ValueError, "at least 1, got 0"),
    ("num_negatives", 2.0, TypeError, "an integer, got float"),
    ("num_negatives", True, TypeError, "an integer, got bool"),
    ("range_min", -1, ValueError, "at least 0, got -1"),
    ("range_max", 2, ValueError, r"at least 3, range_min \+ num_negatives, got 2"),
    ("max_score", "high", TypeError, "a number, got str"),
    ("max_score", float("nan"), ValueError, "a finite number, got nan"),
    ("min_score", float("inf"), ValueError, "a finite number, got inf"),
    ("absolute_margin", torch.tensor(0.1), TypeError, "a number, got Tensor"),
    ("relative_margin", True, TypeError, "a number, got bool"),
    ("margin_against", "median", ValueError, '"min", "max" or "mean", got \'median\''),
    ("sampling", "best", ValueError, '"top", "random" or "softmax", got \'best\''),
    ("sampling_temperature", 0.0, ValueError, "a positive number, got 0.0"),
    ("sampling_temperature", None, ValueError, "a positive number, got None"),
    ("generator", 7, TypeError, "a torch.Generator, got int"),
    ("candidates", 0, ValueError, "at least 1, got 0"),
    ("candidates", 1.5, TypeError, "an integer, got float"),
    ("where", PairFilter(POSITIVES, POSITIVES, "same"), ValueError, "key_ids .* 6 rows, got 4"),
    ("where", [PairFilter(POSITIVES, torch.arange(6), "same")] * 3, ValueError, "at most 2"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_refused(name, value, error, message):
    arguments = {"query": QUERY, "corpus": CORPUS, "positives": POSITIVES} | {name: value}
    with pytest.raises(error, match=f"^{name}.*: expected .*{message}|^{name} .*{message}"):
        mine_hard_negatives(**arguments)


def test_bounds_that_leave_nothing():
    with pytest.raises(ValueError, match=r"min_score: expected less than max_score, 0.2, got 0.2"):
        mine_hard_negatives(QUERY, CORPUS, POSITIVES, min_score=0.2, max_score=0.2)


@pytest.mark.parametrize(("name", "value", "error", "message"), [
    ("start", "0", TypeError, "a number, got str"),
    ("end", -0.1, ValueError, ">= 0, got -0.1"),
    ("end", float("nan"), ValueError, "a finite number >= 0, got nan"),
    ("steps", 0, ValueError, "at least 1, got 0"),
    ("steps", 2.5, TypeError, "an integer, got float"),
    ("wait", -1, ValueError, "at least 0, got -1"),
    ("curve", "step", ValueError, "\"linear\" or \"cosine\", got 'step'"),
])  # fmt: skip
def test_schedule_refuses(name, value, error, message):
    with pytest.raises(error, match=f"{name}: expected .*{message}"):
        MiningSchedule(**{"start": 1.0, "end": 0.1, "steps": 10} | {name: value})
