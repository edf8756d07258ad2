"""Rounding does not grow with the embeddings' width, on any instruction set or product path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.conftest import skip_unless_usable

ROOT = Path(__file__).parent.parent
WIDTHS = (64, 200, 512, 768, 1024, 4096, 8192)
QUERIES = (1, 3, 100)  # BLAS has products of its own for few rows

# Inner products of rows with a common mean: terms of one sign, whose sums round the most.
PROGRAM = """
import json, sys
import torch
import torch.nn.functional as F
from cl_kernels import row_col_logsumexp, topk

widths, queries, keys = json.loads(sys.argv[1])
torch.manual_seed(0)

def error(ours, exact):
    return float(((ours - exact).abs() / exact.abs()).max())

def values(query, key):
    exact = query.double() @ key.double().T
    found, places = topk(query, key, len(key), normalize=False, backend="native")
    # With one query each key's log-sum-exp is its logit.
    alone = [row_col_logsumexp(q[None], key, backend="native")[1] for q in query[:8]]
    return {
        "torch": error(query @ key.T, exact),
        "topk": error(found, exact.gather(1, places)),
        "logsumexp": error(torch.stack(alone), exact[:8]),
    }

def same_sets(ours, exact):
    return float((ours.sort(1).values == exact.sort(1).values).all(1).double().mean())

def clusters(width):
    spread = 0.03 * torch.randn(600, width) / width ** 0.5
    x = F.normalize(F.normalize(torch.randn(width), dim=0) + spread)
    query, key = x[:200], x[200:]
    exact = (query.double() @ key.double().T).topk(10).indices
    ours = topk(query, key, 10, normalize=False, backend="native").indices
    return {
        "torch": same_sets((query @ key.T).topk(10).indices, exact),
        "topk": same_sets(ours, exact),
    }

report = {}
for width in widths:
    key = F.normalize(torch.randn(keys, width) + 2)
    report[width] = {
        "values": [values(F.normalize(torch.randn(m, width) + 2), key) for m in queries],
        "clusters": clusters(width),
    }
print(json.dumps(report))
"""


@pytest.fixture(scope="module", params=["best", "avx2", "baseline"])
def report(request):
    skip_unless_usable("native")
    command = [sys.executable, "-c", PROGRAM, json.dumps([WIDTHS, QUERIES, 700])]
    environment = os.environ | {"CL_KERNELS_ISA": request.param}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return {int(width): found for width, found in json.loads(run.stdout).items()}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("operation", ["topk", "logsumexp"])
def test_values(report, operation, width):
    for found in report[width]["values"]:
        assert found[operation] <= max(6e-7, found["torch"])


@pytest.mark.parametrize("width", WIDTHS)
def test_sets_of_neighbours_in_a_tight_cluster(report, width):
    found = report[width]["clusters"]
    assert found["topk"] >= found["torch"] - 0.02
