"""Triton for a GPU that is not there: kernels get the cache keys that they have on the GPU, and are
compiled or merely looked up, but never launched.

``install`` replaces Triton's driver and lets the Triton backend serve CPU tensors and meta tensors
with the sizes and tiles of the GPU. Results are whatever memory held: this is for what a process
asks the compiler for, not for numbers.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

KEYS_ONLY = "keys"  # a kernel that was asked for is noted, not compiled
COMPILE = "compile"


class Gpu(NamedTuple):
    """What host code asks of a GPU of an architecture."""

    arch: int
    processors: int
    shared: int  # bytes a block may have

    @property
    def capability(self) -> tuple[int, int]:
        return divmod(self.arch, 10)


GPUS = {
    80: Gpu(80, 108, 163 * 1024),
    90: Gpu(90, 132, 227 * 1024),
    100: Gpu(100, 148, 227 * 1024),
}


class Utils:
    def __init__(self, gpu: Gpu):
        self.gpu = gpu

    def load_binary(self, name, kernel, shared, device):
        return 1, 2, 100, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module):
        pass

    def get_device_properties(self, device):
        return {"max_shared_mem": self.gpu.shared, "multiprocessor_count": self.gpu.processors}


class Launcher:
    """Launches nothing; Triton versions that compile a C function for it get that compiled."""

    def __init__(self, source, metadata):
        build_launcher(source, metadata)

    def __call__(self, *args):
        pass


class Driver:
    launcher_cls = Launcher

    def __init__(self, gpu: Gpu):
        self.gpu, self.utils = gpu, Utils(gpu)

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.gpu.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return self.gpu.capability

    def get_active_torch_device(self):
        return torch.device("cpu")


@cache
def stub_folder() -> str | None:
    """A folder with a libcuda.so.1 to link with, or None where there is no C compiler.

    It has the functions that Triton's own extensions call: a linker leaves a library out in which
    it finds nothing, and then they do not load where they are brought to.
    """
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    from triton import knobs
    from triton.backends.nvidia import driver as nvidia

    folder = Path(knobs.cache.dir) / "stubs"
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        sources = Path(nvidia.__file__), Path(nvidia.__file__).with_name("driver.c")
        names = {x for path in sources for x in re.findall(r"\bcu[A-Z]\w*", path.read_text())}
        code = "".join(f"void {name}(void) {{}}\n" for name in sorted(names))
        options = "-shared", "-fPIC", "-x", "c", "-", "-Wl,-soname,libcuda.so.1"
        subprocess.run([compiler, *options, "-o", str(library)], input=code, text=True, check=True)
    return str(folder)


def _build_module(source: str, name: str) -> None:
    """A Python extension of Triton's NVIDIA backend, into Triton's cache; it is not loaded."""
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import build

    folder = stub_folder()
    if folder is None:
        return
    load, build._load_module_from_path = build._load_module_from_path, lambda *_: SimpleNamespace()
    try:
        build.compile_module_from_src(
            src=source, name=name, library_dirs=[nvidia.libdevice_dir, folder],
            include_dirs=nvidia.include_dirs, libraries=nvidia.libraries,
        )  # fmt: skip
    finally:
        build._load_module_from_path = load


@cache
def _build_launcher(constants: tuple, signature: tuple) -> None:
    from triton.backends.nvidia import driver as nvidia

    code = nvidia.make_launcher(dict(constants), dict(signature), None)  # pyright: ignore[reportAttributeAccessIssue]
    _build_module(code, "__triton_launcher")


def build_launcher(source, metadata) -> None:
    """As Triton 3.6 does at a kernel's first launch; later versions need no launcher of its own."""
    from triton.backends.nvidia import driver as nvidia

    if not hasattr(nvidia, "make_launcher"):
        return
    names = source.fn.arg_names
    constants = {
        (names.index(key),) if isinstance(key, str) else key: value
        for key, value in source.constants.items()
    }
    _build_launcher(tuple(constants.items()), tuple(source.signature.items()))


def build_utilities() -> None:
    """The backend's own extension, as a process on the GPU asks for it first."""
    from triton.backends.nvidia import driver as nvidia

    if hasattr(nvidia, "make_launcher"):
        source = Path(nvidia.dirname, "driver.c").read_text()
        _build_module(source, "cuda_utils")


class Noted:
    """In place of a compiled kernel: it can be launched, to no effect."""

    function = packed_metadata = None

    def launch_metadata(self, *_):
        return None

    def run(self, *_):
        pass


def note_kernel(source, target, options: dict[str, Any], _env_vars=None) -> Noted:
    """``triton.compile`` that compiles nothing: a folder in the cache says that this key was."""
    from triton import knobs
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.compiler import compiler

    backend = compiler.make_backend(target)
    parsed = backend.parse_options(dict(options) | source.parse_options())
    key = compiler.get_cache_key(source, backend, parsed, get_cache_invalidating_env_vars())
    note = Path(knobs.cache.dir) / "keys" / sha256(key.encode()).hexdigest()
    hit = note.exists()
    note.mkdir(parents=True, exist_ok=True)
    if knobs.compilation.listener:
        listener: Any = knobs.compilation.listener
        listener(cache_hit=hit)
    return Noted()


def count_kernels() -> dict[str, int]:
    """How many kernels this process found in Triton's cache and how many it compiled, kept up."""
    from triton import knobs

    found = {"hits": 0, "misses": 0}

    def listener(*, cache_hit: bool, **_):
        found["hits" if cache_hit else "misses"] += 1

    knobs.compilation.listener = listener
    return found


def install(arch: int = 90, how: str = COMPILE) -> Gpu:
    """Makes this process one that sees a GPU of ``arch``, for host code and compiler alike."""
    import triton
    from triton.runtime import driver

    gpu = GPUS[arch]
    driver.set_active(Driver(gpu))  # pyright: ignore[reportArgumentType]
    if how == KEYS_ONLY:
        triton.compiler.compile = note_kernel  # pyright: ignore[reportAttributeAccessIssue]
    else:
        build_utilities()
    _serve_without_a_gpu(gpu)
    return gpu


def _serve_without_a_gpu(gpu: Gpu) -> None:
    from cl_kernels import _dispatch, _ops, checks
    from cl_kernels.backends import triton as kernels
    from cl_kernels.backends.gpu import cuts
    from cl_kernels.backends.triton import configs

    if kernels.INTERPRETED:
        sys.exit("offline: TRITON_INTERPRET is set, and the interpreter compiles nothing")
    configs.architecture = lambda device: gpu.arch
    cuts.processors = lambda device: gpu.processors
    kernels.unavailable = lambda: None
    kernels.unsupported = lambda *_: None
    _dispatch._usable.clear()
    _dispatch._chosen.clear()
    _dispatch.offered = lambda device_type: ("triton", "chunked")
    # torch would answer for meta tensors with the operations' fakes, and not for their autocast.
    torch.is_autocast_enabled = lambda *_: False
    for operation, backend in _ops._overloads:
        if backend == "triton":
            _ops._overloads[operation, backend] = _ops.defined[f"{operation}.{backend}"]
    readable = checks.readable
    for module in list(sys.modules.values()):  # values on a GPU are not read either
        if vars(module).get("readable") is readable:
            vars(module)["readable"] = lambda x: False


def quiet_comparisons() -> None:
    """Comparisons of values, which are not there, succeed (``assert`` is for ``python -O``)."""
    import numpy as np

    def nothing(*_: Any, **__: Any) -> None:
        pass

    compiler: Any = torch
    compiler.compile = lambda function, **_: function  # which would trace what stands in for it
    replaced: list[tuple[Any, str]] = [
        (torch.testing, "assert_close"),
        (np.testing, "assert_array_equal"),
        (np.testing, "assert_allclose"),
    ]
    for module, name in replaced:
        setattr(module, name, nothing)
    stubs: dict[str, Callable[..., Any]] = {
        "reset_peak_memory_stats": nothing,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "set_sync_debug_mode": nothing,
        "synchronize": nothing,
        "mem_get_info": lambda *_: (0, 0),
    }
    for name, stub in stubs.items():
        setattr(torch.cuda, name, stub)
