"""What ``doctor`` says of machines other than this one, and devices without float64."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cl_kernels
from cl_kernels import _dispatch, _libraries, _precision
from cl_kernels._ops import defined
from cl_kernels._precision import widest
from cl_kernels.losses import common
from python_tests.helpers import a_request, forget_backends, unit_rows
from python_tests.test_dispatch import python
from python_tests.test_public import DETACHED, TRAINED, run


@pytest.fixture
def rocm(monkeypatch):
    """As if torch were built for ROCm and there were a GPU."""
    forget_backends(monkeypatch)
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 4))
    _libraries.load_failure.cache_clear()
    yield
    _libraries.load_failure.cache_clear()


@pytest.mark.usefixtures("rocm")
def test_rocm_gets_no_kernel_for_nvidia():
    pytest.importorskip("triton.language")
    report = cl_kernels.doctor()
    assert report.serving["cuda"] == "chunked" and report.versions["rocm"] == "7.1"
    assert report.versions["cuda"] == "none (this torch is built without CUDA)"
    for backend in ("triton", "native"):
        assert "this torch is for ROCm" in report.reasons["cuda", backend]
        with pytest.raises(ValueError, match=f"{backend}.*cannot serve.*NVIDIA GPUs.*for ROCm"):
            _dispatch.choose(backend, a_request("cuda"))


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_devices_are_listed_where_there_are_any(device, monkeypatch):
    assert device not in cl_kernels.doctor().serving
    module = {"mps": torch.backends.mps, "xpu": torch.xpu}[device]
    monkeypatch.setattr(module, "is_available", lambda: True)
    report = cl_kernels.doctor()
    assert report.serving[device] == "chunked"
    assert f"{device} tensors are served by chunked" in str(report)
    for backend in ("triton", "native"):
        assert report.reasons[device, backend]


def test_doctor_explains_a_request_that_cannot_be_served():
    with cl_kernels.use_backend("native"):
        report = cl_kernels.doctor()
    assert report.serving["cuda"] is None
    assert "cuda tensors are served by nothing: backend: 'native' (from use_backend)" in str(report)


def test_doctor_explains_a_wrong_name_in_the_environment():
    run = python("import cl_kernels; print(cl_kernels.doctor())", CL_KERNELS_BACKEND="fastest")
    message = "cpu tensors are served by nothing: CL_KERNELS_BACKEND: expected one of native"
    assert message in run.stdout, run.stderr


class WithoutFloat64(TorchDispatchMode):
    """Refuses every tensor of float64, as a device does that has none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cl_kernels":  # torch would run what it consists of out of our sight
            name = str(func).removeprefix("cl_kernels.").removesuffix(".default")
            with self:
                return defined[name](*args)
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64:
                raise TypeError(f"{func} made a tensor of float64")
        return result


@pytest.fixture
def without_float64(monkeypatch):
    monkeypatch.setattr(_precision, "_WITHOUT_FLOAT64", {"cpu"})
    monkeypatch.setattr(common, "_SERIAL_SUM", 8)  # sums as of a large batch
    return WithoutFloat64


CASES = TRAINED | DETACHED
# They weigh counts in float64 on the host, wherever the scores are: no other device is met.
ON_THE_HOST = {"Calibration", "calibrate_gallery", "calibrate_threshold"}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ON_THE_HOST])
def test_everything_works_without_float64(name, without_float64):
    call = CASES[name]
    x, y = unit_rows(24, 8), unit_rows(24, 8)
    expected = run(call, "reference", x, y)
    with without_float64():
        results = run(call, "chunked", x, y)
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


def test_the_device_without_float64_refuses_it():
    for make in (torch.Tensor.double, lambda x: x.sum(dtype=torch.float64)):
        with pytest.raises(TypeError, match="made a tensor of float64"), WithoutFloat64():
            make(torch.ones(3))


def test_which_devices_have_float64(monkeypatch):
    properties = SimpleNamespace(has_fp64=False)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: properties)
    narrow = [d for d in ("cpu", "cuda", "mps", "xpu") if widest(torch.device(d)) != torch.float64]
    assert narrow == ["mps", "xpu"]
    properties.has_fp64 = True
    assert widest(torch.device("xpu")) == torch.float64
