"""The catalogue of losses is complete: nothing is public that tests and benchmarks do not know."""

import inspect
from pathlib import Path

import pytest

import cl_kernels
from benchmarks import readme
from catalogue import eager, textbook
from catalogue.family import FAMILY
from catalogue.losses import LOSSES
from catalogue.table import table
from catalogue.wrappers import WRAPPERS
from cl_kernels import losses
from cl_kernels.losses.module import LossModule

ROOT = Path(__file__).parents[2]
each_loss = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)


def public_modules():
    return {
        name
        for name, value in vars(losses).items()
        if inspect.isclass(value) and issubclass(value, LossModule)
    }


def test_every_loss_is_in_it():
    every = [*LOSSES.values(), *FAMILY.values()]
    wrappers = {name for x in WRAPPERS.values() for name in (x.name, x.module.__name__)}
    assert {case.name for case in every} | public_modules() | wrappers == set(losses.__all__)
    assert {case.module.__name__ for case in every if case.module} == public_modules()
    for case in LOSSES.values():
        assert getattr(cl_kernels, case.name) is case.ours
        assert getattr(cl_kernels, case.module.__name__) is case.module


@each_loss
def test_the_module_is_of_the_function(case):
    assert case.module.function is case.ours
    assert case.module.inputs[:2] == case.inputs
    parameters = inspect.signature(case.ours).parameters
    settings = inspect.signature(case.module).parameters
    assert settings.keys() < parameters.keys()
    for name, setting in settings.items():
        assert setting.default == parameters[name].default, name


@each_loss
def test_the_textbook_takes_what_the_function_takes(case):
    ours = inspect.signature(case.ours).parameters
    theirs = inspect.signature(case.textbook).parameters
    assert theirs.keys() <= ours.keys()
    for options in case.options.values():
        assert options(24, 8).keys() <= theirs.keys()
    assert getattr(textbook, case.name) is case.textbook
    assert getattr(eager, case.name) is case.eager


@each_loss
def test_its_source_is_named_in_its_docstring(case):
    title = case.paper.split(",", 1)[1].rsplit("(", 1)[0].strip()
    documented = " ".join(inspect.getdoc(case.ours).split())
    assert title.split(",")[0] in documented or title in documented, title


def test_the_readme_has_its_table():
    document = (ROOT / "README.md").read_text()
    assert readme.insert(document, readme.CATALOGUE, table()) == document


def test_the_documentation_has_a_section_of_each():
    document = (ROOT / "docs" / "losses.md").read_text()
    headings = [line[3:] for line in document.splitlines() if line.startswith("## ")]
    names = [*LOSSES, *FAMILY, *WRAPPERS]
    for name in names:
        assert headings.count(name) == 1, name
        assert f"(#{name})" in document, name
