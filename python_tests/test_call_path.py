"""How far a loss is from its kernel: what a reader of the code has to go through."""

import traceback
from pathlib import Path

import pytest
import torch

import cl_kernels
from cl_kernels.losses import contrast
from python_tests.conftest import skip_unless_usable

ROOT = str(Path(cl_kernels.__file__).parent)


@pytest.mark.parametrize(("trained", "functions", "files"), [(True, 6, 5), (False, 4, 4)])
def test_nt_xent_reaches_the_compiled_kernel_in_few_functions(
    monkeypatch, trained, functions, files
):
    skip_unless_usable("native")
    paths = []

    def noted(name, backend, overload=contrast.overload):
        stack = traceback.extract_stack()[:-1]
        paths.append([x for x in stack if x.filename.startswith(ROOT)])
        return overload(name, backend)

    monkeypatch.setattr(contrast, "overload", noted)
    x, y = (torch.randn(8, 4, requires_grad=trained) for _ in range(2))
    cl_kernels.nt_xent(x, y, temperature=0.5, backend="native")
    (path,) = paths
    assert path[0].name == "nt_xent"
    assert len(path) <= functions, [x.name for x in path]
    assert len({x.filename for x in path}) <= files
