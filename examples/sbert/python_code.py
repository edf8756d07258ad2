"""Pairs of a function's summary and its code, read with ``ast`` from installed packages."""

import ast
import importlib.util
import json
import os
import platform
import re
import sysconfig
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

STDLIB = "stdlib"
PACKAGES = {  # as imported: as distributed
    STDLIB: "",
    "numpy": "numpy",
    "scipy": "scipy",
    "torch": "torch",
    "sklearn": "scikit-learn",
}
SKIPPED = {"site-packages", "test", "tests"}  # folders
LEAST_WORDS = 4  # of a summary: "Return self." says nothing about the code

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Pair(NamedTuple):
    """``unit`` is what may not be torn apart by the split into training and held-out pairs."""

    query: str
    document: str
    place: str
    unit: str


def gather(cache: Path) -> list[Pair]:
    """All pairs of the packages that are installed, in a fixed order.

    ``cache`` is a folder: a second call with the same versions of everything reads them there.
    """
    found = [name for name in PACKAGES if name == STDLIB or importlib.util.find_spec(name)]
    versions = [platform.python_version(), *(version(PACKAGES[name]) for name in found[1:])]
    stamp = zlib.crc32(" ".join(versions).encode(), zlib.crc32(Path(__file__).read_bytes()))
    path = cache / f"python-{stamp:08x}.json"
    if path.exists():
        return [Pair(*pair) for pair in json.loads(path.read_text())]
    files = [(name, file) for name in found for file in _files(_root(name))]
    pairs = [
        pair
        for name, file in tqdm(files, desc="reading code", unit="file", mininterval=5)
        for pair in _pairs(file, _module(name, file))
    ]
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # runs share the cache
    partial.write_text(json.dumps(pairs))
    partial.replace(path)
    return pairs


def _root(package: str) -> Path:
    if package == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _files(root: Path) -> list[Path]:
    files = (file for file in root.rglob("*.py") if file.is_file())
    return sorted(file for file in files if not SKIPPED & set(file.relative_to(root).parts))


def _module(package: str, file: Path) -> str:
    parts = file.relative_to(_root(package)).with_suffix("").parts
    names = [*([] if package == STDLIB else [package]), *parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def _pairs(file: Path, module: str) -> Iterator[Pair]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # templates, and files made for other versions of Python
        return
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    docstrings = [ast.get_docstring(function) for function in functions]
    for node in ast.walk(tree):  # after the docstrings were read, before any code is written
        _strip(node)
    for function, docstring in zip(functions, docstrings, strict=True):
        summary = " ".join((docstring or "").strip().split("\n\n")[0].split())
        if len(summary.split()) >= LEAST_WORDS and function.body:
            # The name says too much: it goes, wherever it stands.
            code = re.sub(rf"\b{re.escape(function.name)}\b", "f", ast.unparse(function))
            yield Pair(summary, code, f"{module}:{function.lineno}", module)


def _strip(node: ast.AST) -> None:
    """Takes the docstring away, and decorators, which often carry the name."""
    if not isinstance(node, Function | ast.ClassDef):
        return
    node.decorator_list = []
    if ast.get_docstring(node) is not None:
        node.body = node.body[1:]
