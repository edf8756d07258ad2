"""What Triton 3.6 does not take, and 3.9, which the tests compile and interpret with, does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cl_kernels

SOURCES = sorted((Path(cl_kernels.__file__).parent / "backends" / "triton").glob("*.py"))


def device_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = {ast.unparse(decorator) for decorator in node.decorator_list}
            if names & {"kernel", "triton.jit"}:
                yield node


def early_returns(function: ast.FunctionDef) -> Iterator[int]:
    """Lines of an ``if`` that returns and has something behind it."""
    for node in ast.walk(function):
        body = getattr(node, "body", None)
        for statement in body[:-1] if isinstance(body, list) else ():
            if isinstance(statement, ast.If) and any(
                isinstance(x, ast.Return) for x in ast.walk(statement)
            ):
                yield statement.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_device_function_returns_early(path):
    """Triton 3.6 compiles what stands behind such an ``if``, whatever the constant says."""
    found = [
        f"{f.name}, line {line}"
        for f in device_functions(ast.parse(path.read_text()))
        for line in early_returns(f)
    ]
    assert not found


def test_device_functions_are_found():
    assert sum(len(list(device_functions(ast.parse(p.read_text())))) for p in SOURCES) > 50
