"""What is compiled beforehand: packed, unpacked and found elsewhere; stale or broken, said."""

import json
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton is not installed")

from benchmarks.gpu import bundle
from cl_kernels.backends.triton import keys
from tools.precompile import counts

ROOT = Path(__file__).parents[2]


def rehearse(results, *arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [
        *(sys.executable, "-m", "benchmarks.gpu", "--rehearse", "compile"),
        *("--only", "goals", "--match", "topk-64x128", "--results", str(results), *arguments),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=kept | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((results / "summary.json").read_text())


@pytest.mark.slow
def test_a_process_finds_what_another_compiled(tmp_path):
    cache, folder = tmp_path / "cache", tmp_path / "bundle"
    folder.mkdir()
    _, summary = rehearse(tmp_path / "a", "--bundle", "none", TRITON_CACHE_DIR=str(cache))
    compiled = counts(summary)[1]
    assert compiled > 0
    assert bundle.pack(cache, folder / bundle.CACHE) == compiled
    about = {"triton": bundle.installed("triton"), "torch": "1.0", "sources": "others"}
    about["sha256"] = bundle.fingerprint(folder / bundle.CACHE)
    (folder / bundle.ABOUT).write_text(json.dumps(about))
    for path in sorted(cache.rglob("*"), reverse=True):  # nothing is found where it was made
        path.rmdir() if path.is_dir() else path.unlink()
    printed, summary = rehearse(tmp_path / "b", "--bundle", folder)
    assert counts(summary) == (compiled, 0)
    assert f"{compiled} kernels brought" in printed
    assert "made with torch 1.0, here is" in printed and "may still serve" in printed
    assert "sources are not those of the bundle" in printed


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_bundle_of_no_use_is_said_and_stops_nothing(tmp_path, content):
    folder = tmp_path / "bundle"
    folder.mkdir()
    if content is not None:
        (folder / bundle.CACHE).write_bytes(content)
    for about in ("[]", "null", "5", "{", '{"sha256": "of another"}'):
        (folder / bundle.ABOUT).write_text(about)
        (said,) = bundle.bring(folder, tmp_path / "cache", 90)
    assert "the bundle's cache is of no use" in said
    (said,) = bundle.bring(tmp_path / "not there", tmp_path / "cache", 90)
    assert said.startswith("no bundle in")


def test_another_triton_is_said(tmp_path):
    (tmp_path / "made").mkdir()
    bundle.pack(tmp_path / "made", tmp_path / bundle.CACHE)
    about = {"triton": "2.0", "torch": bundle.installed("torch").partition("+")[0], "commit": "abc"}
    about |= {"sources": bundle.kernel_sources(), "library": "of others", "arch": 90}
    about["sha256"] = bundle.fingerprint(tmp_path / bundle.CACHE)
    (tmp_path / bundle.ABOUT).write_text(json.dumps(about))
    brought, stale, arch, library = bundle.bring(tmp_path, tmp_path / "cache", 80)
    assert brought == "0 kernels brought, made at commit abc"
    assert stale.startswith("the bundle was made with triton 2.0") and "nothing of it" in stale
    assert arch == "the bundle was made for sm_90, here is sm_80: no use"
    assert library == "the bundle's _cuda.so was compiled from other sources"
    about |= {"triton": bundle.installed("triton"), "library": bundle.library_sources()}
    (tmp_path / bundle.ABOUT).write_text(json.dumps(about))
    assert bundle.bring(tmp_path, tmp_path / "cache", 90) == [brought]


def test_a_library_is_brought_where_none_was_built(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    (tmp_path / "cl_kernels").mkdir()
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / bundle.LIBRARY).write_text("brought")
    assert "_cuda.so brought" in bundle.bring(folder, tmp_path / "cache", 90)
    library = tmp_path / "cl_kernels" / bundle.LIBRARY
    assert library.read_text() == "brought"
    library.write_text("built here")
    said = bundle.bring(folder, tmp_path / "cache", 90)
    assert library.read_text() == "built here" and "_cuda.so is here already" in said[0]


def test_keys_are_settled_when_the_backend_is_imported():
    """Triton 3.6 makes keys that depend on which kernels were hashed first: all are, in order."""
    from triton.runtime.jit import JITCallable

    package = import_module("cl_kernels.backends.triton")
    modules = [
        import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
    ]
    own = {
        (module.__name__.rpartition(".")[2], function)
        for module in modules
        for function in vars(module).values()
        if isinstance(function, JITCallable) and function.__module__ == module.__name__
    }
    assert len(own) > 40
    assert {name for name, _ in own} == set(keys.MODULES)
    assert all(function.hash for _, function in own)


def test_a_kernel_is_compiled_again_where_its_fold_has_changed():
    """Triton asks a constexpr for its key; a tuple of functions has none of its own."""
    from cl_kernels.backends.triton.folds import FOLDS

    every = [fold for folds in FOLDS.values() for fold in dict.fromkeys(folds)]
    assert len({fold.cache_key for fold in every}) == len(every)
    for fold in every:
        functions = [part for part in fold if hasattr(part, "cache_key")]
        assert functions and all(function.cache_key in fold.cache_key for function in functions)
        assert fold._replace(unit=2 * fold.unit).cache_key != fold.cache_key
