"""Compiles csrc/cuda with nvcc for every architecture and reads what came out."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from tools.compiled import Compiled, examine
from tools.sass import MATRIX, read_cubin

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "kernels"
TARGETS = {80: "80", 90: "90a", 100: "100a"}


def sources() -> list[Path]:
    return sorted((ROOT / "csrc").rglob("*.cu"))


def nvcc() -> str | None:
    return shutil.which("nvcc")


def _newest(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)


def _compile(source: Path, arch: int, force: bool) -> tuple[int, Path, Path, str]:
    """Source, cubin and what nvcc complained of; a cubin newer than the sources is kept."""
    target = TARGETS[arch]
    cubin = BUILD / f"{source.stem}.sm_{target}.cubin"
    if not force and cubin.exists() and cubin.stat().st_mtime > _newest(ROOT / "csrc"):
        return arch, source, cubin, ""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [
        *("nvcc", "-cubin", "-O3", "-std=c++20"),
        f"-gencode=arch=compute_{target},code=sm_{target}",
        *("-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA"),
        *("-isystem", str(Path(spec.origin).parent / "include"), "-o", str(cubin), str(source)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return arch, source, cubin, done.stderr.strip() if done.returncode else ""


def demangled(name: str) -> str:
    """A kernel's name as it was written, with its template arguments, without its parameters."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return name
    done = subprocess.run([tool, "-p", name], capture_output=True, text=True)
    return done.stdout.strip() or name


def compile_sources(jobs: int, force: bool = False) -> Iterator[Compiled]:
    """Every kernel of every .cu file; nothing where nvcc is missing."""
    if nvcc() is None:
        return
    work = [(source, arch, force) for source in sources() for arch in MATRIX]
    with ThreadPoolExecutor(jobs) as pool:
        for arch, source, cubin, error in pool.map(lambda job: _compile(*job), work):
            name = source.relative_to(ROOT / "csrc").as_posix()
            if error:
                yield Compiled(arch, name, error=error.splitlines()[0])
                continue
            for kernel, resources, code in read_cubin(cubin.read_bytes()):
                label = f"{name}: {demangled(kernel)}"
                yield examine(arch, label, resources, resources.shared, code)
