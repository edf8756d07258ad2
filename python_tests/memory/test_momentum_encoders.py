"""Which encoders are followed: wrapped ones, half types, changed ones, bad ones."""

import pytest
import torch
from torch import nn

from cl_kernels.memory import MomentumEncoder
from python_tests.memory.test_momentum import EXACT, change, net


class TestWrappers:
    @pytest.mark.parametrize("wrap", [
        lambda m: torch.compile(m, backend="eager"),
        nn.DataParallel,
        lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    ])  # fmt: skip
    def test_outside(self, wrap):
        encoder = net()
        follower = MomentumEncoder(wrap(encoder), 0.5)
        assert type(follower.module) is nn.Sequential
        self.check(encoder, follower)

    def test_inside(self):
        part, head = net(), nn.Linear(3, 2).double()
        inside = torch.compile(nn.Sequential(torch.compile(part, backend="eager")), backend="eager")
        encoder = nn.Sequential(nn.DataParallel(inside), head, nn.Identity())
        follower = MomentumEncoder(encoder, 0.5)
        kinds = [type(m).__name__ for m in follower.module.modules()]
        assert "DataParallel" not in kinds and "OptimizedModule" not in kinds
        assert "0.0.1.running_mean" in follower.module.state_dict()
        self.check(encoder, follower)

    def test_wrapped_later(self):
        encoder = net()
        follower = MomentumEncoder(encoder, 0.5)
        wrapped = nn.DataParallel(torch.compile(encoder, backend="eager"))
        self.check(wrapped, follower)
        encoder[3] = torch.compile(encoder[3], backend="eager")
        self.check(wrapped, follower)

    def check(self, encoder, follower):
        old = [p.clone() for p in follower.parameters()]
        with torch.no_grad():
            for p in encoder.parameters():
                p.add_(0.1 * torch.randn_like(p))
        follower.update()
        expected = [(p + q) / 2 for p, q in zip(old, encoder.parameters(), strict=True)]
        torch.testing.assert_close(list(follower.parameters()), expected, **EXACT)

    def test_compiled_itself(self):
        encoder = net().eval()
        follower = MomentumEncoder(encoder, 0.5)
        compiled = torch.compile(follower, backend="aot_eager")
        x = torch.randn(8, 4, dtype=torch.float64)
        for _ in range(3):
            change(encoder.eval())
            follower.update()
            torch.testing.assert_close(compiled(x), follower.module(x), **EXACT)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_trained_half_parameters_are_refused(self, dtype):
        with pytest.raises(
            ValueError, match=f"encoder: expected '0.weight' in float32, got {dtype}"
        ):
            MomentumEncoder(net(dtype))
        encoder = net()
        follower = MomentumEncoder(encoder)
        encoder.to(dtype)
        with pytest.raises(ValueError, match=r"expected '0.weight' as its copy, torch.float64"):
            follower.update()
        follower.to(dtype)
        with pytest.raises(ValueError, match=f"expected '0.weight' in float32, got {dtype}"):
            follower.update()

    def test_frozen_ones_are_copied(self):
        encoder = nn.Sequential(nn.Linear(4, 4).bfloat16().requires_grad_(False), nn.Linear(4, 2))
        follower = MomentumEncoder(encoder, 0.5)
        with torch.no_grad():
            encoder[0].weight.fill_(3)
            encoder[1].weight.add_(1)
        old = follower.module[1].weight.clone()
        follower.update()
        assert torch.equal(follower.module[0].weight, encoder[0].weight)
        torch.testing.assert_close(follower.module[1].weight, old + 0.5)
        encoder[0].requires_grad_(True)
        with pytest.raises(ValueError, match=r"expected '0.weight' in float32, got torch.bfloat16"):
            follower.update()

    def test_half_buffers_are_copied_but_not_averaged(self):
        encoder = nn.Linear(4, 4)
        encoder.register_buffer("center", torch.zeros(4, dtype=torch.bfloat16))
        follower = MomentumEncoder(encoder)
        encoder.center.fill_(2)
        follower.update()
        assert torch.equal(follower.module.center, encoder.center)
        with pytest.raises(ValueError, match="encoder: expected 'center' in float32"):
            MomentumEncoder(encoder, buffers="average")

    def test_float32_under_autocast(self):
        encoder = nn.Linear(4, 4)
        follower = MomentumEncoder(encoder)
        with torch.autocast("cpu", torch.bfloat16):
            assert follower(torch.randn(2, 4)).dtype == torch.bfloat16


def grow(encoder):
    encoder[0] = nn.Linear(4, 7).double()


CHANGES = {
    "'3.scale' added": lambda e: e[3].register_parameter("scale", nn.Parameter(torch.ones(1))),
    "'4.weight' added, '4.bias' added": lambda e: e.append(nn.Linear(2, 2)),
    "'3.bias' removed": lambda e: e[3].register_parameter("bias", None),
    "buffers it had when it was copied, got '0.mask' added": lambda e: e[0].register_buffer(
        "mask", torch.ones(1)
    ),
    r"'0.weight' as its copy, torch.float64 \[6, 4\] on cpu, got torch.float64 \[7, 4\]": grow,
    "'0.weight' as its copy, torch.float64 .*, got torch.float32": lambda e: e.float(),
    "'0.weight' as its copy, .* on cpu, got .* on meta": lambda e: e.to("meta"),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_changed_encoder_is_told(message):
    encoder = net()
    follower = MomentumEncoder(encoder)
    change(encoder)
    before = {name: x.clone() for name, x in follower.state_dict().items()}
    CHANGES[message](encoder)
    with pytest.raises(ValueError, match=f"encoder: expected .*{message}"):
        follower.update()
    torch.testing.assert_close(dict(follower.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("momentum", "error", "message"),
    [
        (-0.1, ValueError, "momentum: expected from 0 to 1, got -0.1"),
        (float("nan"), ValueError, "momentum: expected from 0 to 1, got nan"),
        (torch.tensor(0.9), TypeError, "momentum: expected a number, got Tensor"),
        (None, TypeError, "momentum: expected a number, got NoneType"),
    ],
)
def test_bad_momentum(momentum, error, message):
    with pytest.raises(error, match=message):
        MomentumEncoder(net(), momentum)
    encoder = net()
    follower = MomentumEncoder(encoder, lambda step: momentum)
    before = {name: x.clone() for name, x in follower.state_dict().items()}
    change(encoder)
    with pytest.raises(error, match=message):
        follower.update()
    torch.testing.assert_close(dict(follower.state_dict()), before, rtol=0, atol=0)


def test_bad_encoders():
    with pytest.raises(TypeError, match="encoder: expected a module, got function"):
        MomentumEncoder(net)
    with pytest.raises(ValueError, match="encoder: expected one that has seen a batch"):
        MomentumEncoder(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="buffers: expected"):
        MomentumEncoder(net(), buffers="none")


def test_an_encoder_without_parameters():
    follower = MomentumEncoder(nn.Flatten())
    follower.update()
    assert follower.step == 1 and follower(torch.ones(2, 3, 4)).shape == (2, 12)


def test_repr():
    shown = "momentum=0.5, buffers='copy', step=1"
    follower = MomentumEncoder(net(), 0.5)
    follower.update()
    assert shown in repr(follower)
