"""Which backend serves a call, who may say so, and what ``explain`` and ``doctor`` tell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import cl_kernels
from cl_kernels import _dispatch, _libraries
from cl_kernels.backends import BACKENDS, backend_module
from python_tests.helpers import a_request, embeddings, forget_backends, unit_rows

ROOT = Path(__file__).parent.parent


def python(code, **environment):
    """Runs code in a fresh process."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def row_logsumexp(**options):
    return cl_kernels.row_logsumexp(*embeddings(4, 5, 3), **options)


def served_by(function=row_logsumexp, **options):
    return [plan.call.backend for plan in cl_kernels.explain(function, **options).plans]


def test_symbolic_widths_outside_of_torch_compile():
    """``make_fx`` and ``aot_function`` hand symbols on, by which no choice can be remembered."""
    query, key = embeddings(4, 5, 3)
    traced = make_fx(lambda x, y: cl_kernels.row_logsumexp(x, y, 2.0), tracing_mode="symbolic")
    program = traced(query, key)
    torch.testing.assert_close(program(query, key), cl_kernels.row_logsumexp(query, key, 2.0))


def test_argument_beats_context_beats_default():
    default = _dispatch.choose(None, a_request())
    assert served_by() == [default]
    with cl_kernels.use_backend("reference"):
        assert served_by() == ["reference"]
        assert served_by(backend="chunked") == ["chunked"]
        with cl_kernels.use_backend("chunked"):
            assert served_by() == ["chunked"]
        assert served_by() == ["reference"]
    assert served_by() == [default]


def test_context_ends_with_an_exception():
    with pytest.raises(KeyError), cl_kernels.use_backend("reference"):
        raise KeyError
    assert served_by() != ["reference"]


def test_losses_and_modules_pass_the_backend_on():
    a, b = embeddings(4, 4, 3)
    calls = [
        lambda **backend: cl_kernels.nt_xent(a, b, negative_keys=b, **backend),
        lambda **backend: cl_kernels.info_nce(a, b, b, in_batch_negatives=True, **backend),
        lambda **backend: cl_kernels.clip(a, b, 2.0, **backend),
        lambda **backend: cl_kernels.NTXentLoss(**backend)(a, b),
        lambda **backend: cl_kernels.InfoNCELoss(**backend)(a, b),
        lambda **backend: cl_kernels.ClipLoss(**backend)(a, b, 2.0),
    ]
    for call in calls:
        assert set(served_by(call, backend="reference")) == {"reference"}


def test_environment_variable_comes_after_context_and_argument():
    code = """
import torch, cl_kernels
x = torch.randn(4, 3)
def name(**options):
    return cl_kernels.explain(cl_kernels.self_logsumexp, x, **options).plans[0].call.backend
print(name(), name(backend="chunked"))
with cl_kernels.use_backend("chunked"):
    print(name())
"""
    run = python(code, CL_KERNELS_BACKEND="reference")
    assert run.stdout.split() == ["reference", "chunked", "chunked"], run.stderr


def test_unknown_name_in_the_environment():
    """The import is no call: ``doctor`` must be able to tell."""
    code = "import torch, cl_kernels; print(1); cl_kernels.self_logsumexp(torch.ones(2, 2))"
    run = python(code, CL_KERNELS_BACKEND="fastest")
    assert run.returncode != 0 and run.stdout == "1\n"
    message = run.stderr.splitlines()[-1]
    assert "CL_KERNELS_BACKEND: expected one of native, triton" in message
    assert "'fastest'" in message


@pytest.mark.parametrize("ask", ["argument", "context"])
def test_unknown_name(ask):
    with pytest.raises(ValueError, match=r"expected one of native, .*, got 'fastest'"):
        if ask == "argument":
            cl_kernels.self_logsumexp(torch.randn(3, 2), backend="fastest")
        else:
            cl_kernels.use_backend("fastest").__enter__()


@pytest.fixture
def without_libraries(monkeypatch, tmp_path):
    """The package as it is where nothing was compiled."""
    monkeypatch.setattr(_libraries, "_PACKAGE", tmp_path)
    forget_backends(monkeypatch)
    _libraries.load_failure.cache_clear()
    yield
    _libraries.load_failure.cache_clear()


@pytest.mark.usefixtures("without_libraries")
class TestWithoutCompiledLibraries:
    def test_everything_works_on_the_chunked_backend(self):
        a, b = (x.requires_grad_() for x in embeddings(6, 6, 3))
        assert served_by() == ["chunked"]
        cl_kernels.nt_xent(a, b).backward()
        cl_kernels.clip(a, b, 3.0).backward()
        assert a.grad.isfinite().all()

    @pytest.mark.parametrize("ask", ["argument", "context"])
    def test_an_explicit_request_is_refused_with_the_reason(self, ask):
        x = unit_rows(4, 3)
        source = {"argument": "backend argument", "context": "use_backend"}[ask]
        expected = rf"'native' \(from {source}\) cannot serve this call: .*_cpu.so is not built"
        with pytest.raises(ValueError, match=expected):
            if ask == "argument":
                cl_kernels.self_logsumexp(x, backend="native")
            else:
                with cl_kernels.use_backend("native"):
                    cl_kernels.self_logsumexp(x)

    def test_doctor_and_explain_say_why(self):
        report = cl_kernels.doctor()
        assert report.serving["cpu"] == "chunked"
        assert "_cpu.so is not built" in report.reasons["cpu", "native"]
        assert "cpu tensors are served by chunked" in str(report)
        assert "cannot: _cpu.so is not built" in str(report)
        explanation = str(cl_kernels.explain(cl_kernels.self_logsumexp, unit_rows(4, 3)))
        assert "chunked (native: _cpu.so is not built" in explanation


def test_a_library_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "_cpu.so").write_bytes(b"not a library")
    monkeypatch.setattr(_libraries, "_PACKAGE", tmp_path)
    _libraries.load_failure.cache_clear()
    assert "_cpu.so does not load" in _libraries.load_failure("_cpu.so")
    _libraries.load_failure.cache_clear()


def test_an_explicit_request_for_a_device_it_does_not_serve():
    reason = _dispatch.reason_against("native", "meta", torch.float32)
    assert reason is not None
    with pytest.raises(ValueError, match="cannot serve this call"):
        cl_kernels.self_logsumexp(torch.empty(3, 2, device="meta"), backend="native")


def test_native_comes_first_where_it_is_built():
    if _dispatch.reason_against("native", "cpu", torch.float32):
        pytest.skip("_cpu.so is not built")
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert _dispatch.choose(None, a_request(dtype=dtype)) == "native"
    assert cl_kernels.doctor().serving["cpu"] == "native"


@pytest.fixture
def two_gpus(monkeypatch):
    """As if there were a GPU of compute capability 9.0, which is current, and one of 7.5."""
    pytest.importorskip("triton.language")
    if backend_module("triton").INTERPRETED:
        pytest.skip("the interpreter serves any device")
    capability = {0: (9, 0), 1: (7, 5)}
    forget_backends(monkeypatch)
    monkeypatch.setattr(backend_module("native"), "load_failure", lambda library: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda x: capability[x.index])


@pytest.mark.usefixtures("two_gpus")
class TestTwoGpus:
    def test_a_backend_is_asked_about_the_tensors_own(self, monkeypatch):
        def choose(device):
            return _dispatch.choose(None, a_request(device))

        for _ in range(2):
            assert choose("cuda:0") == choose(torch.device("cuda:0")) == choose("cuda") == "triton"
            assert choose("cuda:1") == choose(torch.device("cuda:1")) == "chunked"
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        assert choose("cuda") == "chunked"

    @pytest.mark.parametrize("backend", ["triton", "native"])
    def test_a_request_is_refused_for_one_of_them(self, backend):
        assert _dispatch.choose(backend, a_request("cuda:0")) == backend
        with pytest.raises(ValueError, match=r"capability 8\.0, cuda:1 has 7\.5"):
            _dispatch.choose(backend, a_request("cuda:1"))


@pytest.mark.parametrize("name", ["row_logsumexp", "row_col_logsumexp", "self_logsumexp", "topk"])
def test_calls_name_their_tensors_device(name):
    x = torch.empty(4, 3, device="meta")
    call = getattr(cl_kernels, name)
    arguments = {"self_logsumexp": (x,), "topk": (x, x, 2)}.get(name, (x, x))
    for plan in cl_kernels.explain(call, *arguments).plans:
        assert plan.call.request.device == x.device


def test_no_gpu_for_the_cuda_library(monkeypatch):
    """It may load without one."""
    forget_backends(monkeypatch)
    monkeypatch.setattr(backend_module("native"), "load_failure", lambda library: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cl_kernels.doctor().reasons["cuda", "native"] == "there is no CUDA GPU"


def test_doctor():
    report = cl_kernels.doctor()
    assert {"cl_kernels", "torch", "python", "cuda", "triton", "cpu"} <= set(report.versions)
    assert report.versions["torch"] == torch.__version__
    assert {name for _, name in report.reasons} == set(BACKENDS)
    assert report.reasons["cpu", "chunked"] is None
    text = str(report)
    for device in ("cpu", "cuda"):
        assert f"{device} tensors are served by {report.serving[device]}" in text


class TestExplain:
    def test_primitive(self):
        query, key = unit_rows(1000, 8), unit_rows(3000, 8)
        explanation = cl_kernels.explain(
            cl_kernels.row_col_logsumexp, query, key, 2.0, backend="chunked"
        )
        (plan,) = explanation.plans
        call = plan.call
        assert (call.primitive, call.M, call.N, call.request.width) == (
            "row_col_logsumexp",
            1000,
            3000,
            8,
        )
        assert plan.dense_bytes == 1000 * 3000 * 4
        assert plan.statistics_bytes == 4 * (1000 + 3000)
        assert plan.flops == (2 * 1000 * 3000 * 8, 3 * 2 * 1000 * 3000 * 8)
        text = str(explanation)
        assert "row_col_logsumexp: 1000 x 3000 pairs, width 8, float32 on cpu" in text
        assert "chunked (asked for by name: backend argument)" in text
        assert "the matrix would take 11.44 MB" in text

    def test_losses_list_every_visit(self):
        a, b = embeddings(6, 6, 3)
        explanation = cl_kernels.explain(cl_kernels.nt_xent, a, b, negative_keys=unit_rows(9, 3))
        assert [(p.call.primitive, p.call.M, p.call.N) for p in explanation.plans] == [
            ("self_logsumexp", 12, 12),
            ("row_logsumexp", 12, 9),
        ]

    def test_autocast_shows_in_the_products(self):
        with torch.autocast("cpu", torch.bfloat16):
            explanation = cl_kernels.explain(cl_kernels.clip, *embeddings(6, 6, 3), 2.0)
        assert explanation.plans[0].call.request.compute_dtype == torch.bfloat16
        assert "tile products in bfloat16" in str(explanation)

    def test_it_computes_nothing_and_leaves_nothing_behind(self, monkeypatch):
        a, b = embeddings(6, 6, 3)
        for module in ("statistics.operations", "losses.contrast"):
            monkeypatch.setattr(
                f"cl_kernels.{module}.overload", lambda *_: pytest.fail("an operation ran")
            )
        cl_kernels.explain(cl_kernels.NTXentLoss(), a, b)
        monkeypatch.undo()
        assert cl_kernels.nt_xent(a, b) > 0

    def test_a_function_that_calls_no_primitive(self):
        assert str(cl_kernels.explain(lambda: None)) == "no primitive is called"

    def test_bad_arguments_raise_as_in_the_call(self):
        with pytest.raises(ValueError, match="key"):
            cl_kernels.explain(cl_kernels.row_logsumexp, unit_rows(3, 4), unit_rows(3, 5))


def test_explain_tells_of_negatives_of_each_query():
    x, own = unit_rows(4, 3), unit_rows(20, 3).view(4, 5, 3)
    for options, shapes in (
        ({}, [(4, 5)]),
        ({"in_batch_negatives": True}, [(4, 4), (4, 5)]),
    ):
        plans = cl_kernels.explain(cl_kernels.info_nce, x, x, own, **options).plans
        assert [(plan.call.M, plan.call.N) for plan in plans] == shapes
    plans = cl_kernels.explain(cl_kernels.info_nce, x, x, unit_rows(30, 3), hardest=2).plans
    found = [(plan.call.primitive, plan.call.M, plan.call.N) for plan in plans]
    assert found == [("topk", 4, 30), ("row_logsumexp", 4, 2)]


def test_explain_counts_the_product_of_a_guide():
    x, guide = unit_rows(4, 3), unit_rows(4, 10)

    def flops(**options):
        (plan,) = cl_kernels.explain(cl_kernels.row_logsumexp, x, x, **options).plans
        return plan.flops

    plain, guided = flops(), flops(guide=(guide, guide, 0.5))
    product = 2 * 4 * 4 * 10
    assert guided == (plain[0] + product, plain[1] + product)
