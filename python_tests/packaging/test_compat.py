"""The tool that tries other versions of torch: what it runs, and how it reads what came of it."""

import argparse
import ast
import sys
from pathlib import Path

import pytest

from tools import compat

ROOT = Path(__file__).parents[2]
CASE = '<testcase classname="python_tests.{}" name="{}">{}</testcase>'
REPORT = [
    CASE.format("test_a", "good", ""),
    CASE.format("test_a", "left", '<skipped message="no GPU"/>'),
    CASE.format("test_a.TestB", "bad", '<failure message="E: 1&#10;E: 2"/>'),
    CASE.format("test_c", "torn", '<failure message="x"/><error message="y"/>'),
    CASE.format("test_d", "unmade", '<error message="no fixture"/>'),
]


@pytest.mark.parametrize("name", compat.TESTS)
def test_they_need_no_more_than_the_environments_have(name):
    """A file that is not there fails here too."""
    allowed = {
        "torch",
        "cl_kernels",
        "python_tests",
        "catalogue",
        *compat.PACKAGES,
        *sys.stdlib_module_names,
    }
    for node in ast.parse((ROOT / f"python_tests/{name}.py").read_text()).body:
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert {name.split(".")[0] for name in names} <= allowed


def test_the_oldest_is_what_the_package_asks_for():
    assert f'"torch>={compat.OLDEST}"' in (ROOT / "pyproject.toml").read_text()


def test_outcome(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites>{''.join(REPORT)}</testsuites>")
    failures = [
        ("test_a.TestB::bad", "E: 1"),
        ("test_c::torn", "x"),
        ("test_d::unmade", "no fixture"),
    ]
    assert compat.outcome(report) == (1, 1, failures)


def test_a_given_interpreter():
    assert compat._interpreter(f"2.11={sys.executable}") == ("2.11", Path(sys.executable))
    for wrong in ("2.11", "2.11=/nowhere/python"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected VERSION=PATH"):
            compat._interpreter(wrong)


@pytest.mark.parametrize(
    ("serving", "failures", "code"),
    [("native", [], 0), ("native", [("test_a::bad", "why")], 1), ("chunked", [], 1)],
)
def test_the_table_and_the_exit(serving, failures, code, monkeypatch, capsys):
    done = ["2.11.0", "3.12.1", serving], compat.Outcome(5, 2, failures)
    monkeypatch.setattr(compat, "run", lambda version, python: done)
    monkeypatch.setattr(sys, "argv", ["compat", "2.11", "--python", f"2.11={sys.executable}"])
    assert compat.main() == code
    told = capsys.readouterr()
    assert f"| 2.11.0 | 3.12.1 | {serving} | 5 | 2 | {len(failures)} |" in told.out
    assert ("test_a::bad: why" in told.err) == bool(failures)
