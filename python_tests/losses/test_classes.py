"""Softmax over classes with a margin: edges, samples, numerics, memory and modules."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cl_kernels
from catalogue.family import classes as textbook
from cl_kernels import ArcFaceLoss, MarginSoftmaxLoss, NormalizedSoftmaxLoss, margin_softmax
from cl_kernels.losses.classes import Margin
from python_tests.helpers import assert_frobenius

ROOT = Path(__file__).parents[2]
BLOCKS = sys.modules["cl_kernels.losses.classes"]


def inputs(B=12, C=30, D=8, dtype=torch.float32):
    x, weight = torch.randn(B, D).to(dtype), torch.randn(C, D).to(dtype)
    return x.requires_grad_(), torch.randint(C, (B,)), weight.requires_grad_()


def in_double(x, target, weight):
    return x.detach().double().requires_grad_(), target, weight.detach().double().requires_grad_()


def gradients(form, given, **settings):
    value = form(*given, **settings)
    return value, *torch.autograd.grad(value, (given[0], given[2]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.zeros(12)}, TypeError, "target: expected an int64 or int32"),
        ({"target": torch.zeros(11, dtype=torch.long)}, ValueError, "target: expected one index"),
        ({"target": torch.full((12,), 30)}, ValueError, r"target: .* in \[0, 30\), got 30 to 30"),
        ({"target": torch.full((12,), -1)}, ValueError, r"target: .* got -1 to -1"),
        ({"weight": torch.randn(30, 7)}, ValueError, "weight: expected the width of x, 8, got 7"),
        ({"weight": torch.randn(30, 8).double()}, TypeError, "weight: expected the dtype of x"),
        ({"scale": math.inf}, ValueError, "scale: expected a finite number"),
        ({"m1": 0}, ValueError, "m1: expected a number above 0, got 0"),
        ({"m2": -0.1}, ValueError, "m2: expected an angle from 0 to pi"),
        ({"m3": math.nan}, ValueError, "m3: expected a finite number, got nan"),
        ({"m3": 1e39}, ValueError, "m3: expected a finite number, got 1e.39"),
        ({"m3": "0.1"}, TypeError, "m3: expected a number, got str"),
        ({"sample": 0}, ValueError, "sample: expected from 1 to 30 classes, got 0"),
        ({"sample": 31}, ValueError, "sample: expected from 1 to 30 classes, got 31"),
        ({"sample": 1.5}, ValueError, "sample: expected a part above 0, at most 1"),
        ({"sample": True}, TypeError, "sample: expected a number, got bool"),
        ({"generator": 3}, TypeError, "generator: expected a torch.Generator, got int"),
        ({"normalize": False, "m2": 0.5}, ValueError, "normalize: expected True with margins of"),
        ({"reduction": "all"}, ValueError, "reduction: expected"),
    ],
)
def test_bad_inputs(change, error, message):
    x, target, weight = inputs()
    with pytest.raises(error, match=message):
        margin_softmax(**({"x": x, "target": target, "weight": weight} | change))


def test_bad_margins_are_called_what_the_caller_calls_them():
    with pytest.raises(ValueError, match="margin: expected an angle"):
        cl_kernels.arcface(*inputs(), margin=28.6)
    with pytest.raises(ValueError, match="margin: expected a finite number"):
        cl_kernels.cosface(*inputs(), margin=math.inf)


def test_empty_batch_and_one_class(backend):
    x, target, weight = inputs(B=0)
    value, *grads = gradients(margin_softmax, (x, target, weight), backend=backend)
    assert value == 0
    assert not any(g.any() for g in grads)
    assert margin_softmax(x, target, weight, reduction="none").shape == (0,)
    value, *grads = gradients(cl_kernels.arcface, inputs(C=1), backend=backend)
    assert value == 0
    assert not any(g.any() for g in grads)


def test_shapes_and_int32():
    x, target, weight = inputs()
    each = cl_kernels.arcface(x, target, weight, reduction="none")
    assert each.shape == (12,)
    torch.testing.assert_close(each.mean(), cl_kernels.arcface(x, target.int(), weight))


class TestBlocks:
    """Blocks of a few classes."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setattr(BLOCKS, "_SMALLEST_BLOCK", 1)
        monkeypatch.setattr(BLOCKS, "_MOST_BLOCKS", 7)

    @pytest.mark.parametrize("normalize", [True, False])
    def test_the_same(self, backend, normalize):
        given, some = inputs(dtype=torch.float64), {"normalize": normalize, "scale": 3.0, "m3": 0.2}
        value, *grads = gradients(margin_softmax, given, backend=backend, **some)
        expected, *truth = gradients(textbook.margin_softmax, given, **some)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grads, truth, rtol=1e-10, atol=1e-12)

    def test_only_what_is_trained(self):
        given = inputs()
        value, of_x, of_weight = gradients(cl_kernels.arcface, given)
        x, target, weight = given
        for frozen, expected in ((0, of_weight), (2, of_x)):
            some = [x.detach() if i == frozen and i != 1 else x for i, x in enumerate(given)]
            trained = some[2 - frozen]
            (grad,) = torch.autograd.grad(cl_kernels.arcface(*some), trained)
            torch.testing.assert_close(grad, expected)
        scale = torch.tensor(64.0, requires_grad=True)
        frozen = x.detach(), target, weight.detach()
        (alone,) = torch.autograd.grad(cl_kernels.arcface(*frozen, scale=scale), scale)
        (beside,) = torch.autograd.grad(cl_kernels.arcface(*given, scale=scale), scale)
        torch.testing.assert_close(alone, beside)
        with torch.no_grad():
            assert torch.equal(cl_kernels.arcface(*given), value.detach())

    def test_twice_the_same(self):
        given = inputs(B=64)
        first, second = (gradients(cl_kernels.arcface, given) for _ in range(2))
        assert all(map(torch.equal, first, second))

    def test_compiled(self):
        given = inputs()
        compiled = torch.compile(cl_kernels.arcface, backend="aot_eager", dynamic=True)
        torch.testing.assert_close(
            gradients(compiled, given), gradients(cl_kernels.arcface, given), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("normalize", [True, False])
def test_operations(normalize):
    x, target, weight = (t.detach() for t in inputs())
    scale, given = torch.tensor(3.0), (1.0, 0.0, 0.1, normalize, torch.float32, None)
    operations, backend = torch.ops.cl_kernels, "chunked"
    arguments = backend, x, weight, target, scale, *given
    torch.library.opcheck(operations.contrast_classes.default, arguments)
    losses, *kept = operations.contrast_classes(*arguments)
    for needs in ((True, True, True), (True, False, False), (False, False, True)):
        of = backend, torch.ones_like(losses), *kept, x, weight, target, scale, *given, needs
        torch.library.opcheck(operations.contrast_classes_backward.default, of)


@pytest.mark.parametrize("setting", ["m1", "m2", "m3"])
def test_compiled_with_other_margins(setting):
    given = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(margin_softmax, backend="aot_eager")
    for value in (0.5, 0.4, 0.3, 1.1):
        settings = {setting: value, "scale": 8.0}
        torch.testing.assert_close(
            gradients(compiled, given, **settings), gradients(margin_softmax, given, **settings),
            rtol=1e-5, atol=1e-6,
        )  # fmt: skip


@pytest.mark.parametrize("m1, m2", [(1.0, 0.5), (1.0, 2.6), (1.35, 0.0), (4.0, 0.2), (0.9, 0.4)])
def test_the_margin_falls_with_the_angle(m1, m2):
    angle = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(2001, 2)
    weight = torch.stack((angle.cos(), angle.sin()), 1)
    factor, offset, slope = Margin(m1, m2, 0.0).of(x, weight)
    value = factor * angle.cos() + offset
    assert (value.diff() <= 1e-12).all()
    assert (slope[1:] >= 0).all()
    assert slope.isfinite().all()
    falls = m1 * angle + m2 < math.pi - 1e-9
    torch.testing.assert_close(value[falls], (m1 * angle + m2).cos()[falls])


class TestAligned:
    """Rows at and beside the angles 0 and pi, where acos has no derivative."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("factor", [2.0, -2.0, 0.37])
    @pytest.mark.parametrize("m1", [1.0, 1.5])
    def test_exactly(self, dtype, factor, m1):
        _, target, weight = inputs(B=10, C=10, dtype=dtype)
        target = target.sort().values
        x = (factor * weight.detach().double()[target]).to(dtype).requires_grad_()
        value, *grads = gradients(margin_softmax, (x, target, weight), m1=m1, m2=0.5, scale=8.0)
        assert all(g.isfinite().all() for g in grads)
        given = in_double(x, target, weight)
        exact, *truth = gradients(margin_softmax, given, m1=m1, m2=0.5, scale=8.0)
        torch.testing.assert_close(value.double(), exact, rtol=0.01, atol=1e-3)
        if factor < 0 and dtype == torch.float32:
            for grad, expected in zip(grads, truth, strict=True):
                assert_frobenius(grad, expected, 1e-5)

    @pytest.mark.parametrize("classes", [1, 5])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_opposite_where_the_margin_still_falls(self, dtype, classes):
        """With m1 below 1 the angle pi is not beyond: its cosine has no direction there."""
        weight = torch.eye(6, dtype=dtype)[:classes].requires_grad_()
        x = torch.stack((-weight[0], torch.ones(6, dtype=dtype))).detach().requires_grad_()
        given = x, torch.tensor([0, 0]), weight
        value, *grads = gradients(margin_softmax, given, m1=0.9, scale=4.0)
        assert value.isfinite() and all(g.isfinite().all() for g in grads)
        if classes == 1:
            assert value == 0 and not any(g.any() for g in grads)

    @pytest.mark.parametrize("angle", [1e-3, 1e-2, math.pi - 0.51, math.pi - 1e-3])
    def test_nearly(self, angle):
        C, D = 6, 16
        unit = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
        x = math.cos(angle) * unit[:C] + math.sin(angle) * unit[-1]
        given = x.float().requires_grad_(), torch.arange(C), unit[:C].float().requires_grad_()
        value, *grads = gradients(cl_kernels.arcface, given, scale=4.0)
        exact, *truth = gradients(textbook.arcface, in_double(*given), scale=4.0)
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
        rule = 3e-7 / min(angle, math.pi - angle) + 1e-5
        for grad, expected in zip(grads, truth, strict=True):
            assert_frobenius(grad, expected, rule)

    def test_small_losses_keep_their_digits(self):
        unit = torch.eye(8)[:5].clone()
        given = unit.requires_grad_(), torch.arange(5), unit.detach().clone().requires_grad_()
        value, *grads = gradients(cl_kernels.normalized_softmax, given, temperature=0.02)
        expected = 4 * math.exp(-50)
        assert value.item() == pytest.approx(expected, rel=1e-4)
        exact = gradients(cl_kernels.normalized_softmax, in_double(*given), temperature=0.02)
        for grad, truth in zip(grads, exact[1:], strict=True):
            assert_frobenius(grad / expected, truth / expected, 1e-4)


class TestSample:
    def test_all_classes_are_all_classes(self):
        given = inputs(dtype=torch.float64)
        expected = gradients(cl_kernels.arcface, given)
        for sample in (1.0, 30):
            torch.testing.assert_close(
                gradients(cl_kernels.arcface, given, sample=sample), expected
            )

    def test_targets_and_others(self):
        given = inputs(B=5, C=400)
        _, _, of_weight = gradients(margin_softmax, given, sample=20, scale=1.0)
        used = of_weight.any(1).nonzero().flatten()
        assert len(used) == 20
        assert set(given[1].tolist()) <= set(used.tolist())
        *_, of_weight = gradients(margin_softmax, given, sample=0.1, scale=1.0)
        assert of_weight.any(1).sum() == 40

    def test_is_the_loss_of_these_classes(self):
        x, target, weight = inputs(B=5, C=400)
        value, of_x, of_weight = gradients(cl_kernels.arcface, (x, target, weight), sample=20,
                                           generator=torch.Generator().manual_seed(3))  # fmt: skip
        drawn = torch.rand(400, generator=torch.Generator().manual_seed(3))
        drawn[target] = 2
        kept = drawn.topk(20).indices
        of_kept = (kept == target[:, None]).int().argmax(1)
        expected = gradients(cl_kernels.arcface, (x, of_kept, weight[kept]))
        torch.testing.assert_close(value, expected[0])
        torch.testing.assert_close(of_x, expected[1])
        torch.testing.assert_close(of_weight[kept], expected[2])

    def test_a_generator_decides(self):
        given = inputs(B=5, C=400)
        same = [
            margin_softmax(*given, sample=9, generator=torch.Generator().manual_seed(seed))
            for seed in (4, 4, 5)
        ]
        assert same[0] == same[1] != same[2]


class TestModules:
    def test_learns(self):
        centres, target = 3 * torch.randn(6, 8), torch.arange(60) % 6
        x = centres[target] + torch.randn(60, 8)
        loss = ArcFaceLoss(6, 8, scale=8.0, margin=0.2)
        assert [name for name, _ in loss.named_parameters()] == ["weight"]
        optimizer, before = torch.optim.Adam(loss.parameters(), 0.02), loss(x, target).item()
        for _ in range(60):
            optimizer.zero_grad()
            loss(x, target).backward()
            optimizer.step()
        assert loss(x, target) < before / 2
        assert (F.linear(F.normalize(x), F.normalize(loss.weight)).argmax(1) == target).all()

    def test_is_the_function(self):
        x, target, _ = inputs()
        loss = MarginSoftmaxLoss(30, 8, m1=0.9, m2=0.4, m3=0.15, scale=30.0, reduction="sum")
        some = {"m1": 0.9, "m2": 0.4, "m3": 0.15, "scale": 30.0, "reduction": "sum"}
        assert torch.equal(loss(x, target), margin_softmax(x, target, loss.weight, **some))
        assert 0.009 < MarginSoftmaxLoss(1000, 8).weight.std() < 0.011
        assert repr(loss).startswith("MarginSoftmaxLoss(30, 8, scale=30.0, m1=0.9")
        assert eval(repr(loss)).weight.shape == (30, 8)

    def test_learned_temperature_dtype_and_device(self):
        loss = NormalizedSoftmaxLoss(30, 8, nn.Parameter(torch.tensor(0.1)), dtype=torch.float64)
        assert {name for name, _ in loss.named_parameters()} == {"weight", "temperature"}
        assert loss.weight.dtype == torch.float64
        assert NormalizedSoftmaxLoss(30, 8, device="meta").weight.is_meta
        other = NormalizedSoftmaxLoss(30, 8, torch.tensor(0.5), dtype=torch.float64)
        other.load_state_dict(loss.state_dict())
        assert torch.equal(other.weight, loss.weight)

    def test_one_weight(self):
        x, target, weight = inputs()
        assert ArcFaceLoss()(x, target, weight) == cl_kernels.arcface(x, target, weight)
        with pytest.raises(TypeError, match="weight: expected one in the call, as the loss"):
            ArcFaceLoss()(x, target)
        with pytest.raises(TypeError, match="weight: expected none, got one beside"):
            ArcFaceLoss(30, 8)(x, target, weight)
        wrong: list[Any] = [((30,), "dim"), ((0, 8), "num_classes"), ((30, 8.0), "dim")]
        for sizes, named in wrong:
            with pytest.raises((TypeError, ValueError), match=f"{named}: expected"):
                ArcFaceLoss(*sizes)


def test_explained():
    report = cl_kernels.explain(cl_kernels.arcface, *inputs())
    assert "row_logsumexp: 12 x 30 pairs" in str(report)


# Alone in a fresh process, whose resident memory is the measurement. Large pieces of memory go
# back to the system at once (see the environment), as otherwise chance decides.
PROGRAM = """
import json, sys
from pathlib import Path
import torch, cl_kernels

dtype, classes = json.loads(sys.argv[1])

def inputs(classes):
    x, weight = torch.randn(256, 128), torch.randn(classes, 128)
    x, weight = (t.to(getattr(torch, dtype)).requires_grad_() for t in (x, weight))
    return x, torch.randint(classes, (256,)), weight

def resident(field):
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if field + ":" in x]
    return int(line.split()[1]) * 1024

cl_kernels.arcface(*inputs(300)).backward()
measured = inputs(classes)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
cl_kernels.arcface(*measured).backward()
print((resident("VmHWM") - before) / measured[2].nbytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_copy_of_the_weight(dtype):
    """The weight's gradient, and less than half of it beside."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no /proc/self/clear_refs")
    command = [sys.executable, "-c", PROGRAM, json.dumps([dtype, 200_000])]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= 1.5


@pytest.mark.slow
def test_a_million_classes_in_bfloat16():
    B, C, D, scale = 64, 1_000_000, 64, 64.0
    x, target, weight = inputs(B, C, D, torch.bfloat16)
    value, of_x, of_weight = gradients(cl_kernels.arcface, (x, target, weight))
    unit = F.normalize(x.detach().double())
    own = (unit * F.normalize(weight.detach()[target].double())).sum(1)
    parts = []
    for first in range(0, C, 50_000):
        cosine = unit @ F.normalize(weight.detach()[first : first + 50_000].double()).T
        mine = torch.arange(first, first + cosine.shape[1]) == target[:, None]
        parts.append((scale * cosine).masked_fill(mine, -torch.inf).logsumexp(1))
    positive = scale * textbook._own_logit(own, 1, 0.5, 0)
    exact = F.softplus(torch.stack(parts).logsumexp(0) - positive, threshold=40).mean()
    torch.testing.assert_close(value.double(), exact, rtol=2e-3, atol=0)
    assert of_x.isfinite().all()
    assert of_weight.isfinite().all()
