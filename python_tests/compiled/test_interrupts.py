"""Ctrl-C and other signals are heard during native calls, and nothing is different afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.conftest import skip_unless_usable

ROOT = Path(__file__).parents[2]
CALLS = ("nt_xent", "info_nce", "row_logsumexp", "mean_key", "backward", "topk")

# Each call would take over 20 seconds, and the signal comes once it has begun. A second is
# promised, but the machine may be busy.
PROGRAM = """
import os, signal, sys, threading, time
import torch
import torch.nn.functional as F
import cl_kernels
from cl_kernels._ops import overload
from cl_kernels.calls import Call
from cl_kernels.pairs import Pairs

PATIENCE = 15
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
torch.manual_seed(0)
torch.set_num_threads(2)
x = torch.randn(256).expand(160_000, 256).contiguous()
leaf = x.clone().requires_grad_()
small = F.normalize(torch.randn(700, 48))
compiled = torch.compile(
    lambda x: cl_kernels.self_logsumexp(x, 0.1, backend="native"), backend="eager", dynamic=True
)

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.new_zeros(len(x))

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        statistics = [grads[0].contiguous()], [torch.zeros(len(x))]
        call = Call(Pairs(), x.dtype, None).arguments
        compute = overload("self_logsumexp_backward", "native")
        needs = [True, False, False, False]
        return compute(*statistics, x, None, torch.tensor(1.0), *call, needs)[0]

calls = {
    "nt_xent": lambda: cl_kernels.nt_xent(x, x, backend="native"),
    "info_nce": lambda: cl_kernels.info_nce(x, x, backend="native"),
    "row_logsumexp": lambda: cl_kernels.row_logsumexp(x, x, backend="native"),
    "mean_key": lambda: cl_kernels.row_logsumexp(leaf, x, backend="native"),
    "backward": lambda: Backward.apply(leaf).sum().backward(),
    "topk": lambda: overload("topk", "native")(
        x, x, 10, None, None, None, None, *Pairs()
    ),
    "compiled": lambda: compiled(x),
}

def right():
    lse = cl_kernels.self_logsumexp(small, 9.0, backend="native")
    exact = torch.logsumexp(9 * small.double() @ small.double().T, 1)
    found = cl_kernels.topk(small, small, 3, backend="native").indices[:, 0]
    return bool((lse - exact).abs().max() < 1e-5) and torch.equal(found, torch.arange(len(small)))

def interrupt():
    time.sleep(0.5)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

assert right()
for name in sys.argv[1:]:
    if name == "compiled":
        compiled(small)
    sent = []
    sender = threading.Thread(target=interrupt)
    sender.start()
    try:
        try:
            calls[name]()
        except RuntimeError as error:  # a compiled graph's call is torch's own
            assert name == "compiled" and "interrupted by a signal" in str(error), (name, error)
            (lambda: None)()  # Python goes on
    except KeyboardInterrupt:
        assert time.monotonic() - sent[0] < PATIENCE, name
    else:
        raise AssertionError(name)
    sender.join()
    assert right(), name
"""

# A trainer's handler that only sets a flag; one with an exception of its own; a call that is not
# the main thread's. A call takes several times as long as signals wait.
HANDLERS = """
import os, signal, threading, time
import torch
import torch.nn.functional as F
import cl_kernels

torch.manual_seed(0)
torch.set_num_threads(2)
x = F.normalize(torch.randn(18_000, 256))

def compute(x=x):
    return cl_kernels.self_logsumexp(x, 9.0, backend="native")

def send(count=20):
    for _ in range(count):
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

def during(handler):
    signal.signal(signal.SIGUSR1, handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        return compute()
    finally:
        sender.join()

class Preempted(Exception):
    pass

received = []

def note(*_):
    received.append(compute(x[:100]))  # a handler may use the library itself

def refuse(*_):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    raise Preempted("now")

expected = compute()
assert torch.equal(during(note), expected)
assert received and all(torch.equal(found, compute(x[:100])) for found in received)
try:
    during(refuse)
except Preempted as error:
    assert str(error) == "now"
else:
    raise AssertionError("not raised")

results = []
signal.signal(signal.SIGUSR1, lambda *_: None)
beside = threading.Thread(target=lambda: results.append(compute()))
beside.start()
send()
beside.join()
assert torch.equal(results[0], expected)
"""


def run(program, *arguments):
    skip_unless_usable("native")
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.parametrize("calls", [CALLS, ("compiled",)], ids=["eager", "compiled"])
def test_ctrl_c(calls):
    run(PROGRAM, *calls)


def test_other_handlers():
    run(HANDLERS)
