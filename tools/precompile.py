"""Compiles beforehand what a GPU machine will run: Triton's kernels and ``_cuda.so``, in a bundle.

    python -m tools.precompile --arch 90 --out build/gpu/cache.tgz

Goes through the GPU check without a GPU (``benchmarks.gpu --rehearse compile``), under the GPU
machine's versions in an environment of their own, so that every kernel gets the key under which
Triton looks for it there. Then another process, from sources in another folder, must find all of
them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu import bundle, offline
from benchmarks.gpu.records import SUMMARY
from benchmarks.machine import ROOT, commit
from tools.rehearsal import copied_sources

TORCH, TRITON, PYTHON = "2.11.0", "3.6.0", "3.12"  # of the GPU machine
PACKAGES = f"torch=={TORCH}", f"triton=={TRITON}", "numpy", "pytest", "hypothesis"
FORMS: tuple[tuple[str, ...], ...] = ((), ("--second",))


def make_environment(folder: Path, interpreter: str) -> Path:
    """The Python of an environment with the GPU machine's versions, made where it is not yet."""
    python = folder / "bin" / "python"
    if not python.exists():
        found = shutil.which(interpreter)
        if found is None:
            sys.exit(f"precompile: {interpreter} was not found; --python names another")
        subprocess.run([found, "-m", "venv", str(folder)], check=True)
    have = subprocess.run([python, "-c", "import torch, triton, pytest, hypothesis, numpy"])
    if have.returncode:
        print(f"installing {', '.join(PACKAGES)} into {folder}", flush=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    code = (
        "import json, platform, torch, triton; print(json.dumps({'torch': "
        "torch.__version__.partition('+')[0], 'triton': triton.__version__, "
        "'python': platform.python_version()}))"
    )
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def rehearse(python: Path, sources: Path, results: Path, *more: str, **environment: str) -> dict:
    """One form of the check; its summary."""
    command = [
        *(str(python), "-m", "benchmarks.gpu", "--rehearse", offline.COMPILE),
        *("--results", str(results), "--commit", commit(), *more),
    ]
    (results / SUMMARY).unlink(missing_ok=True)  # none of an earlier run must look like this one's
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    subprocess.run(command, cwd=sources, env=kept | environment, stdout=subprocess.DEVNULL)
    if not (results / SUMMARY).exists():
        sys.exit(f"precompile: {' '.join(command)} left no summary")
    return json.loads((results / SUMMARY).read_text())


def counts(summary: dict) -> tuple[int, int]:
    """Kernels found and kernels compiled."""
    found = [r for cases in summary["results"].values() for r in cases.values()]
    return sum(r.get("hits", 0) for r in found), sum(r.get("misses", 0) for r in found)


def errors(summary: dict) -> list[str]:
    return [
        f"{stage}: {case}: {result['error']}"
        for stage, cases in summary["results"].items()
        for case, result in cases.items()
        if "error" in result
    ]


def missed(summary: dict) -> list[str]:
    return [
        f"{stage}: {case}: {result['misses']} compiled again"
        for stage, cases in summary["results"].items()
        for case, result in cases.items()
        if result.get("misses")
    ]


def prove(python: Path, folder: Path, arch: int) -> tuple[int, list[str]]:
    """What other processes, running another copy of the sources, find and what they miss."""
    hits, misses = 0, []
    with copied_sources() as elsewhere:
        for form in FORMS:
            summary = rehearse(
                python, elsewhere, elsewhere / "results", *form,
                "--bundle", str(folder), "--arch", str(arch),
            )  # fmt: skip
            hits += counts(summary)[0]
            misses += missed(summary) + errors(summary)
    return hits, misses


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.precompile", description=__doc__)
    add = parser.add_argument
    add("--arch", type=int, default=90, choices=offline.GPUS, help="of the GPU (90)")
    add(
        "--out",
        type=Path,
        default=bundle.FOLDER / bundle.CACHE,
        help="the cache's file; the rest of the bundle is written beside it (build/gpu/cache.tgz)",
    )
    add(
        "--environment", type=Path, default=ROOT / "build" / "gpu-environment",
        help="with the GPU machine's versions, made where it is not (build/gpu-environment)",
    )  # fmt: skip
    parser.add_argument("--python", default=f"python{PYTHON}", help="makes the environment")
    options = parser.parse_args()
    folder: Path = options.out.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    python = make_environment(options.environment.absolute(), options.python)
    cache = ROOT / "build" / "gpu-cache" / f"sm_{options.arch}"
    shutil.rmtree(cache, ignore_errors=True)
    failed, loads = [], None
    print("compiling what the GPU check asks for: some minutes", flush=True)
    for form in FORMS:
        arguments = "--arch", str(options.arch)
        summary = rehearse(
            python, ROOT, folder / "rehearsal", *form, *arguments,
            "--bundle", os.devnull, TRITON_CACHE_DIR=str(cache),
        )  # fmt: skip
        failed += errors(summary)
        print(f"{' '.join(form) or 'first form'}: compiled {counts(summary)[1]} times", flush=True)
        if not form:
            loads = summary["results"]["environment"][bundle.LIBRARY]["loads"]
    kernels = bundle.pack(cache, options.out)
    about = {
        **versions(python), "arch": options.arch, "commit": commit(), "kernels": kernels,
        "sources": bundle.kernel_sources(), "library": bundle.library_sources(),
        "sha256": bundle.fingerprint(options.out),
    }  # fmt: skip
    (folder / bundle.ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    library = ROOT / "cl_kernels" / bundle.LIBRARY
    if library.exists():
        shutil.copy2(library, folder / bundle.LIBRARY)
    print(f"{bundle.LIBRARY} under torch {about['torch']}: {'loads' if loads is True else loads}")
    print(f"{kernels} kernels in {options.out}, {options.out.stat().st_size / 1e6:.1f} MB")
    hits, misses = prove(python, folder, options.arch)
    print(f"other processes, sources in another folder: {hits} hits, {len(misses)} cases missed")
    for line in misses + failed:
        print(line)
    return int(bool(misses or failed or not hits))


if __name__ == "__main__":
    sys.exit(main())
