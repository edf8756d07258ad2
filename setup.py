"""Builds cl_kernels/_cpu.so and, where nvcc is found, cl_kernels/_cuda.so with CMake and Ninja.

The libraries register torch operators and hold no Python symbols: one wheel serves every Python.

    CL_KERNELS_PURE_PYTHON=1   leave the libraries out; plain torch does the work
    CL_KERNELS_CUDA=0          leave _cuda.so out even where nvcc is found
    CMAKE_ARGS                 more arguments for CMake
    CUDAARCHS                  CUDA architectures instead of the default list
"""

import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
BUILD = ROOT / "build" / "cmake"  # kept between runs, so that only what changed is compiled


def flag(name, default):
    return os.environ.get(name, default) not in ("", "0")


def torch_directory():
    """Where torch's headers and libraries are. Looked up before any metadata is made: pip would
    otherwise download torch into an isolated build first and fail afterwards."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "cl_kernels: torch is not importable here; install torch and build with "
            "`pip install --no-build-isolation`, or set CL_KERNELS_PURE_PYTHON=1."
        )
    release = version("torch")
    if tuple(map(int, release.split(".")[:2])) < (2, 11):
        sys.exit(f"cl_kernels: needs torch 2.11 or newer to build, found {release}.")
    return Path(spec.origin).parent


def tool(name):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=path) or sys.exit(
        f"cl_kernels: {name} was not found; `pip install cmake ninja` brings it."
    )


class CMakeBuild(build_ext):
    def run(self):
        in_place = self.inplace or self.editable_mode
        prefix = ROOT if in_place else Path(self.build_lib).resolve()
        cmake = tool("cmake")
        configure = [
            *(cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DTORCH_DIR={torch_directory()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCL_CUDA={'ON' if flag('CL_KERNELS_CUDA', '1') else 'OFF'}",
            f"-DCL_TESTING={'ON' if in_place else 'OFF'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        cache = BUILD / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            configure.append("--fresh")  # the tree was copied here together with its build
        subprocess.check_call([str(argument) for argument in configure])
        subprocess.check_call([cmake, "--build", str(BUILD)])
        for library in ("_cpu.so", "_cuda.so"):  # none stays that this build leaves out
            (prefix / "cl_kernels" / library).unlink(missing_ok=True)
        subprocess.check_call([cmake, "--install", str(BUILD), "--prefix", str(prefix)])

    def get_outputs(self):  # CMake installs them; setuptools would expect a name with a Python ABI
        return []

    def get_output_mapping(self):
        return {}


class CleanBuild(build):
    def run(self):  # modules that were renamed since the last wheel must not linger
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class AnyPythonWheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


commands = {"build": CleanBuild, "bdist_wheel": AnyPythonWheel}
if flag("CL_KERNELS_PURE_PYTHON", "0"):
    setup(cmdclass=commands)
else:
    torch_directory()
    setup(
        ext_modules=[Extension("cl_kernels._cpu", [])],
        cmdclass=commands | {"build_ext": CMakeBuild},
    )
