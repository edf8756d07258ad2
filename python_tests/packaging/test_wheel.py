"""What the compiled library asks of its surroundings, and what a wheel holds."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = [ROOT / "cl_kernels" / name for name in ("_cpu.so", "_cuda.so")]

# A symbol is `name@VERSION` where glibc or libstdc++ promises it for good. From torch only the C
# shims of its stable ABI may come. Headers guard most of them by TORCH_TARGET_VERSION, but not the
# generated `aoti_torch_{cpu,cuda}_*`: look one up in torch 2.11's
# `torch/csrc/inductor/aoti_torch/generated/c_shim_{cpu,cuda}.h` before adding it.
ALLOWED = [
    r"\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+",
    r"_ITM_(de)?registerTMCloneTable|__gmon_start__",
    # libtorch_cpu.so carries some of libstdc++'s own, without their versions.
    r"_ZN?[KOR]*S[a-z](?!\w*(2at|3c10|5torch))\w+",
    r"torch_\w+",
    r"aoti_torch_(?!cpu_|cuda_)\w+",
    r"aoti_torch_cpu_(mm|addmm)_out",
]
# The CUDA runtime is linked in, cuBLAS is reached through torch: what remains lives in
# libtorch_cuda.so, which importing a CUDA build of torch has loaded.
ALLOWED_CUDA = [r"aoti_torch_cuda_addmm_out"]
NEEDED = r"libtorch(_cpu)?\.so|libc10\.so|lib(stdc\+\+|m|gcc_s|c|dl|pthread|rt)\.so\.\d|ld-linux.*"


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=LIBRARIES, ids=lambda path: path.name)
def library(request):
    if not request.param.exists():
        pytest.skip(f"{request.param.name} is not built")
    return request.param


def test_undefined_symbols_are_allowed(library):
    listing = output("nm", "-D", "--undefined-only", str(library))
    symbols = [line.split()[-1].replace("@@", "@") for line in listing.splitlines()]
    assert symbols
    patterns = ALLOWED + (ALLOWED_CUDA if library.name == "_cuda.so" else [])
    allowed = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    assert [symbol for symbol in symbols if not allowed.fullmatch(symbol)] == []


def test_exports_no_symbol_of_its_own(library):
    listing = output("nm", "-D", "--defined-only", "-C", str(library))
    assert [line for line in listing.splitlines() if " cl::" in line] == []


def test_needed_libraries_and_runpath(library):
    dynamic = output("readelf", "-d", "-W", str(library))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert {"libtorch.so", "libtorch_cpu.so", "libc10.so"} <= set(needed)
    assert [name for name in needed if not re.fullmatch(NEEDED, name)] == []  # no OpenMP, no Python
    assert re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic) == ["$ORIGIN/../torch/lib"]


def build_wheel(directory, **environment):
    """The wheel's path; CMake reuses the build directory, so nothing is compiled twice."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", directory]
    command += ["build", "--build-base", directory / "build"]
    command += ["bdist_wheel", "--bdist-dir", directory / "bdist", "--dist-dir", directory / "dist"]
    subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        timeout=600,
    )
    (wheel,) = (directory / "dist").glob("*.whl")
    return wheel


def contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name}


def sources():
    package = ROOT / "cl_kernels"
    files = [path for path in package.rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    return {str(path.relative_to(ROOT)) for path in files}


def test_pure_python_wheel(tmp_path):
    wheel = build_wheel(tmp_path, CL_KERNELS_PURE_PYTHON="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert contents(wheel) == sources()


def test_wheel(tmp_path):
    if not LIBRARIES[0].exists():
        pytest.skip("_cpu.so is not built")
    wheel = build_wheel(tmp_path)
    assert re.search(r"-py3-none-linux_\w+\.whl$", wheel.name)
    built = {f"cl_kernels/{path.name}" for path in LIBRARIES if path.exists()}
    assert contents(wheel) == sources() | built


def package(folder, name, release):
    """As if it were installed there."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    about = folder / f"{name}-{release}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")


@pytest.mark.parametrize(
    ("packages", "pure", "wanted"),
    [
        ({}, "1", ["setuptools 77 or newer (found none)"]),
        ({}, "0", ["setuptools 77 or newer (found none)", "torch 2.11 or newer (found none)"]),
        ({"setuptools": "59.8.0"}, "1", ["setuptools 77 or newer (found 59.8.0)"]),
        ({"setuptools": "59.8.0", "torch": "2.11.0"}, "0", ["setuptools 77"]),
        ({"setuptools": "77.0.1", "torch": "2.9.1+cpu"}, "0", ["torch 2.11", "(found 2.9.1+cpu)"]),
        ({"setuptools": "77.0.1"}, "0", ["torch 2.11 or newer (found none)", "PURE_PYTHON=1"]),
    ],
)
def test_what_a_build_lacks_is_said_in_one_line(packages, pure, wanted, tmp_path):
    for name, release in packages.items():
        package(tmp_path, name, release)
    run = subprocess.run(
        [sys.executable, "-S", "setup.py", "--version"],  # -S leaves site-packages out
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CL_KERNELS_PURE_PYTHON": pure},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    (line,) = run.stderr.splitlines()
    assert all(part in line for part in (*wanted, "pip install", "--no-build-isolation"))
    assert len(packages) < 2 or ("setuptools" in line) != ("torch" in line)


def test_instruction_sets_do_not_leak():
    # A weak symbol could be the copy that the linker keeps, and then run on an older machine.
    objects = [*(ROOT / "build" / "cmake").rglob("tile_kernels_avx*.o")]
    if not objects:
        pytest.skip("the libraries were not built here")
    for path in objects:
        listing = output("nm", "-C", str(path))
        assert re.findall(r"^\S* +[VWu] .*", listing, re.MULTILINE) == [], path.name
