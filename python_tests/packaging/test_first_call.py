"""Where nothing of the package was called before: torch.compile, while which traces backends are
imported and their libraries loaded, and programs that another process exported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

import cl_kernels
from python_tests.helpers import unit_rows

ROOT = Path(__file__).parents[2]
LABELS = torch.arange(8) % 4

CALLS = {
    "row_logsumexp": lambda x, y: cl_kernels.row_logsumexp(x, y, 2.0),
    "row_col_logsumexp": lambda x, y: cl_kernels.row_col_logsumexp(x, y, 2.0),
    "self_logsumexp": lambda x, y: cl_kernels.self_logsumexp(x, 2.0),
    "pair_logits": lambda x, y: cl_kernels.pair_logits(x, y, 2.0),
    "nt_xent": lambda x, y: cl_kernels.nt_xent(x, y),
    "nt_xent, trained": lambda x, y: cl_kernels.nt_xent(x, y),
    "nt_xent by chunked": lambda x, y: cl_kernels.nt_xent(x, y, backend="chunked"),
    "info_nce": lambda x, y: cl_kernels.info_nce(x, y),
    "info_nce of the hardest": lambda x, y: cl_kernels.info_nce(x, y, hardest=3),
    "clip": lambda x, y: cl_kernels.clip(x, y, 2.0),
    "topk": lambda x, y: tuple(cl_kernels.topk(x, y, 3)),
    "hardest_positive": lambda x, y: tuple(cl_kernels.hardest_positive(x, LABELS)),
    "hardest_negative": lambda x, y: tuple(cl_kernels.hardest_negative(x, LABELS)),
    "semi_hard_negative": lambda x, y: tuple(cl_kernels.semi_hard_negative(x, LABELS)),
    "NTXentLoss": cl_kernels.NTXentLoss(),
    "InfoNCELoss": cl_kernels.InfoNCELoss(),
    "ClipLoss": lambda x, y: cl_kernels.ClipLoss()(x, y, 2.0),
}


def first_call(name):
    """In float32, then in bfloat16, each compiled before it is called as it is."""
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.bfloat16):
        x, y = (unit_rows(8, 4, dtype).requires_grad_("trained" in name) for _ in range(2))
        torch.testing.assert_close(compiled(x, y), CALLS[name](x, y))


def succeeds(test, *args):
    """Runs a test in a fork, which nothing was called in."""
    child = os.fork()
    if not child:
        try:
            test(*args)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


class Exported(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x, y):
        return CALLS[self.name](x, y)


EXPORTED = "row_logsumexp", "self_logsumexp", "nt_xent", "info_nce", "clip", "topk"


def inputs():
    torch.manual_seed(0)
    return unit_rows(8, 4), unit_rows(8, 4)


def first_call_of_exported(path):
    program, expected = torch.export.load(path), torch.load(path.with_suffix(".pt"))
    for actual, value in zip(tree_leaves(program.module()(*inputs())), expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=0, atol=0)


def names_that_succeed(*arguments):
    run = subprocess.run(
        [sys.executable, "-m", "python_tests.packaging.test_first_call", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return run.stdout.split("\n")[:-1], run.stderr[-5000:]


needs_forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")


@needs_forks
def test_compiled_at_the_first_call():
    names, errors = names_that_succeed()
    assert names == list(CALLS), errors


@needs_forks
def test_exported_by_another_process(tmp_path):
    for name in EXPORTED:
        program = torch.export.export(Exported(name), inputs())
        torch.export.save(program, tmp_path / f"{name}.pt2")
        torch.save(tree_leaves(program.module()(*inputs())), tmp_path / f"{name}.pt")
    names, errors = names_that_succeed(str(tmp_path))
    assert sorted(names) == sorted(EXPORTED), errors


if __name__ == "__main__":
    if sys.argv[1:]:
        todo = {
            path.stem: (first_call_of_exported, path) for path in Path(sys.argv[1]).glob("*.pt2")
        }
    else:
        torch.compile(torch.sin, fullgraph=True, backend="aot_eager")(torch.ones(2))  # its imports
        todo = {name: (first_call, name) for name in CALLS}
    for name, test in todo.items():
        if succeeds(*test):
            print(name, flush=True)
