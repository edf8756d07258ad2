"""Builds cl_kernels/_cpu.so and, where nvcc is found, cl_kernels/_cuda.so with CMake and Ninja.

The libraries register torch operators and hold no Python symbols: one wheel serves every Python.

    CL_KERNELS_PURE_PYTHON=1   leave the libraries out; plain torch does the work
    CL_KERNELS_CUDA=0          leave _cuda.so out even where nvcc is found
    CMAKE_ARGS                 more arguments for CMake
    CUDAARCHS                  CUDA architectures instead of the default list
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.resolve()
BUILD = ROOT / "build" / "cmake"  # kept between runs, so that only what changed is compiled


def flag(name, default):
    return os.environ.get(name, default) not in ("", "0")


PURE_PYTHON = flag("CL_KERNELS_PURE_PYTHON", "0")
NEEDS = {"setuptools": "77"} if PURE_PYTHON else {"setuptools": "77", "torch": "2.11"}


def found(package):
    """The version that an import would get here, or None."""
    if find_spec(package) is None:
        return None
    try:
        return version(package)
    except PackageNotFoundError:  # on the path, but not installed
        return getattr(__import__(package), "__version__", "0")


def older(release, least):
    return [int(n) for n in re.findall(r"\d+", release)] < [int(n) for n in least.split(".")]


def demand(needs):
    """Ends with one line if something is not here. Asked before setuptools is imported, and before
    any metadata is made: pip would otherwise download torch into an isolated build first and fail
    afterwards."""
    have = {package: found(package) for package in needs}
    short = [p for p, least in needs.items() if have[p] is None or older(have[p], least)]
    if short:
        wanted = " and ".join(f"{p} {needs[p]} or newer (found {have[p] or 'none'})" for p in short)
        install = " ".join(f"'{p}>={needs[p]}'" for p in short)
        pure = ", or set CL_KERNELS_PURE_PYTHON=1" if "torch" in short else ""
        sys.exit(
            f"cl_kernels: building needs {wanted}; pip install {install} and build with "
            f"pip install --no-build-isolation .{pure}"
        )


demand(NEEDS)

from setuptools import Extension, setup  # noqa: E402
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402
from setuptools.command.build import build  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402


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
            f"-DTORCH_DIR={Path(find_spec('torch').origin).parent}",
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
if PURE_PYTHON:
    setup(cmdclass=commands)
else:
    setup(
        ext_modules=[Extension("cl_kernels._cpu", [])],
        cmdclass=commands | {"build_ext": CMakeBuild},
    )
