"""The examples of docs/grad_cache.md run as they are printed."""

import re
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "grad_cache.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example):
    exec(compile(example, "grad_cache.md", "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) == 2
