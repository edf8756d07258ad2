"""Imports point down this list only, and backends never import one another."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cl_kernels"
LAYERS = [  # top to bottom; the package itself (its __init__) is the top
    {"cl_kernels"},
    {"integrations"},
    {"grad_cache", "distributed", "memory", "mining", "evaluation"},
    {"losses", "diagnostics"},
    {"search"},
    {"statistics"},
    {"ranks"},
    {"calls"},
    {"checks"},
    {"csr"},
    {"_recording"},
    {"_dispatch"},
    {"_ops", "pairs", "reading"},
    {"_spread"},
    {"_transforms"},
    {"_interrupts", "_patches", "_scopes", "_tracing", "_version"},
    {"backends"},
    {"_numbers", "_libraries", "_precision"},
]
SHARED = {("backends", "gpu"), ("backends", "packed")}  # what backends may import of one another
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def layer(module):
    return module.split(".")[1] if "." in module else module


def unit(module):
    """What may import its own parts: a top-level module or subpackage; each backend by itself."""
    return tuple(module.split(".")[1 : 3 if layer(module) == "backends" else 2])


def for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(module):
    """Names of everything a module imports, anywhere in its text; (name, is at the top)."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(), str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    inside = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef) or for_types(block)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join((parent if node.level else []) + ([node.module] if node.module else []))
            members = [f"{base}.{alias.name}" for alias in node.names]
            names = [member if member in MODULES else base for member in members]
        else:
            continue
        for name in names:
            yield name, node not in inside


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    assert layer(module) in RANK, f"{module} has no layer yet: add it to LAYERS"
    for name, _ in imports(module):
        if name.split(".")[0] != "cl_kernels" or unit(name) == unit(module):
            continue
        if unit(name) in SHARED and layer(module) == "backends" and unit(module) not in SHARED:
            continue
        assert RANK[layer(name)] > RANK[layer(module)], f"{module} must not import {name}"


@pytest.mark.parametrize("module", MODULES)
def test_core_needs_torch_only(module):
    if layer(module) == "integrations" or module.startswith("cl_kernels.backends.triton"):
        return
    allowed = {"cl_kernels", "torch", *sys.stdlib_module_names}
    for name, at_top in imports(module):
        assert not at_top or name.split(".")[0] in allowed, f"{module} imports {name} when loaded"
