"""What was compiled beforehand and brought along: Triton's cache and ``_cuda.so``.

``python -m tools.precompile`` makes a bundle; a run unpacks its cache into a folder of its own. Of
a bundle for other versions nothing is found in the cache, and everything is compiled where it runs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.machine import ROOT

FOLDER = ROOT / "build" / "gpu"
CACHE, ABOUT, LIBRARY = "cache.tgz", "bundle.json", "_cuda.so"
GROUP = "__grp__"  # Triton's file of where a kernel's other files are


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kernel_sources() -> str:
    """A hash of the sources that Triton's keys depend on."""
    return _hash((ROOT / "cl_kernels" / "backends" / "triton").glob("*.py"))


def library_sources() -> str:
    """A hash of what ``_cuda.so`` is compiled from."""
    csrc = ROOT / "csrc"
    return _hash([*(csrc / "cuda").glob("*"), *csrc.glob("*.h")])


def fingerprint(archive: Path) -> str:
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def pack(cache: Path, archive: Path) -> int:
    """Packs what a process needs to find its kernels; how many there are."""
    kernels = 0
    with tarfile.open(archive, "w:gz", compresslevel=9) as tar:
        for path in sorted(cache.glob("*/*")):
            if path.name.startswith(GROUP):
                kernels += 1
            elif path.suffix not in (".cubin", ".json", ".so"):
                continue
            if path.parent.name != "stubs":
                tar.add(path, path.relative_to(cache).as_posix())
    return kernels


def unpack(archive: Path, cache: Path) -> int:
    """Unpacks a cache where this process's children look for it; how many kernels it holds."""
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(cache, filter="data")
    groups = list(cache.glob(f"*/{GROUP}*"))
    for group in groups:
        content = json.loads(group.read_text())
        names = [name for name in content["child_paths"] if (group.parent / name).exists()]
        content["child_paths"] = {name: str(group.parent / name) for name in names}
        group.write_text(json.dumps(content))
    return len(groups)


def bring(folder: Path, cache: Path, arch: int) -> list[str]:
    """Makes a bundle's parts usable; a line for each thing that a person should know."""
    said = []
    if not folder.is_dir():
        return [f"no bundle in {folder}: kernels are compiled here"]
    library = ROOT / "cl_kernels" / LIBRARY
    if (folder / LIBRARY).exists() and library.exists():
        said.append(f"{LIBRARY} is here already: the bundle's is not used")
    elif (folder / LIBRARY).exists():
        try:
            partial = library.with_suffix(".partial")  # half a library would end the process
            shutil.copy2(folder / LIBRARY, partial)
            partial.replace(library)
            said.append(f"{LIBRARY} brought")
        except OSError as error:
            said.append(f"{LIBRARY} was not brought: {error}")
    try:
        about = dict(json.loads((folder / ABOUT).read_text()))
        if about.get("sha256") != fingerprint(folder / CACHE):
            raise ValueError(f"{CACHE} is not the one that {ABOUT} speaks of, or is damaged")
        count = unpack(folder / CACHE, cache)
    except Exception as error:  # whatever it holds, the check goes on without it
        said.append(f"the bundle's cache is of no use ({type(error).__name__}: {error})")
        return said
    said.append(f"{count} kernels brought, made at commit {about.get('commit')}")
    for package in ("triton", "torch"):
        made, here = about.get(package), installed(package).partition("+")[0]
        if made != here:
            stale = "nothing of it will be found" if package == "triton" else "it may still serve"
            said.append(f"the bundle was made with {package} {made}, here is {here}: {stale}")
    if about.get("arch") != arch:
        said.append(f"the bundle was made for sm_{about.get('arch')}, here is sm_{arch}: no use")
    if (ROOT / "csrc").is_dir() and about.get("library") != library_sources():
        said.append(f"the bundle's {LIBRARY} was compiled from other sources")
    if about.get("sources") != kernel_sources():
        said.append("the kernels' sources are not those of the bundle: what changed is compiled")
    return said
