"""What a call would do (``explain``) and what is installed (``doctor``)."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cl_kernels import _recording
from cl_kernels._dispatch import PREFERENCE, choose, reason_against
from cl_kernels._ops import BACKENDS
from cl_kernels._recording import PrimitiveCall
from cl_kernels._version import __version__

# Matrix products in units of 2 M N D operations: (forward, backward). Where only half of a Gram
# matrix is visited, a half and one and a half.
_HALF_VISITS = {("native", "cpu"), ("triton", "cuda")}
_HALVES = (0.5, 1.5)
_DEFAULT_VISITS = (1, 3)


@dataclass(frozen=True)
class Plan:
    """One primitive call: the path it takes and what that costs."""

    call: PrimitiveCall
    why: str

    @property
    def flops(self) -> tuple[float, float]:
        """Floating-point operations of the matrix products, (forward, backward)."""
        c = self.call
        if c.primitive == "topk":
            return 2 * c.M * c.N * c.D, 0  # the backward pass sees the pairs found only
        half = c.primitive == "self_logsumexp" and (c.backend, c.device.type) in _HALF_VISITS
        forward, backward = _HALVES if half else _DEFAULT_VISITS
        return forward * 2 * c.M * c.N * c.D, backward * 2 * c.M * c.N * c.D

    @property
    def statistics_bytes(self) -> int:
        """Bytes kept between forward and backward beside the embeddings."""
        c = self.call
        if c.primitive == "topk":
            return 0
        width = 8 if c.dtype == torch.float64 else 4
        return width * (c.M + (c.N if c.primitive == "row_col_logsumexp" else 0))

    @property
    def dense_bytes(self) -> int:
        """Bytes of the one M x N matrix of logits that is never made."""
        return self.call.M * self.call.N * (8 if self.call.dtype == torch.float64 else 4)

    def __str__(self) -> str:
        c = self.call
        forward, backward = self.flops
        matrix = (
            "holds the M x N matrix"
            if c.backend == "reference"
            else f"keeps {_bytes(self.statistics_bytes)} of statistics; "
            f"the matrix would take {_bytes(self.dense_bytes)}"
        )
        return (
            f"{c.primitive}: {c.M} x {c.N} pairs, width {c.D}, {_name(c.dtype)} on {c.device}, "
            f"tile products in {_name(c.compute_dtype)}\n"
            f"  backend     {c.backend} ({self.why})\n"
            f"  operations  {forward / 1e9:.3g} GFLOP forward, {backward / 1e9:.3g} backward\n"
            f"  memory      {matrix}"
        )


@dataclass(frozen=True)
class Explanation:
    """The primitive calls of one function call, in order."""

    plans: tuple[Plan, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.plans)) or "no primitive is called"


def explain(function: Callable, *args, **kwargs) -> Explanation:
    """Which path a call would take, its memory and its operations, without computing it.

    Runs ``function(*args, **kwargs)`` with every primitive replaced by a note of its call, so it
    explains losses, modules and compositions of your own alike.

    Returns:
        An ``Explanation``; print it, or read its ``plans``.
    """
    with torch.no_grad(), _recording.recording() as calls:
        function(*args, **kwargs)
    return Explanation(tuple(Plan(call, _why(call)) for call in calls))


def _why(call: PrimitiveCall) -> str:
    if call.asked is not None:
        return f"asked for by name: {call.asked}"
    reasons = []
    for name in PREFERENCE.get(call.device.type, ()):
        if name == call.backend:
            break
        reasons.append(f"{name}: {reason_against(name, call.device, call.dtype)}")
    return "; ".join(reasons) or f"first choice on {call.device}"


@dataclass(frozen=True)
class Report:
    """What is installed, which backend serves which device, and why not the others.

    Attributes:
        versions: What is installed, by name.
        serving: The backend that serves each type of device; None where a backend was asked for by
            name that cannot.
        reasons: Why a backend cannot serve a type of device, or None if it can, by (device type,
            backend).
        refusals: What a call says on the devices that nothing serves.
    """

    versions: dict[str, str]
    serving: dict[str, str | None]
    reasons: dict[tuple[str, str], str | None]
    refusals: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name:12s}{version}" for name, version in self.versions.items()]
        for device, chosen in self.serving.items():
            served = chosen or f"nothing: {self.refusals[device]}"
            lines.append(f"\n{device} tensors are served by {served}")
            for backend in BACKENDS:
                reason = self.reasons[device, backend]
                lines.append(f"  {backend:12s}{'can' if reason is None else 'cannot: ' + reason}")
        return "\n".join(lines)


def doctor() -> Report:
    """Says what is installed, which backend serves which device, and why not the others.

    Float32 embeddings are meant; ``explain`` tells about one call. It raises for no setting: a
    wrong ``CL_KERNELS_BACKEND`` is reported. Tensors on ROCm are of the type "cuda" to torch.
    """
    serving: dict[str, str | None] = {}
    refusals: dict[str, str] = {}
    for device in _devices():
        try:
            serving[device] = choose(None, device, torch.float32)
        except ValueError as error:
            serving[device] = None
            refusals[device] = str(error)
    reasons = {
        (device, name): reason_against(name, device, torch.float32)
        for device in serving
        for name in BACKENDS
    }
    return Report(_versions(), serving, reasons, refusals)


def _devices() -> list[str]:
    """The CPU and CUDA always, the others where there are any."""
    others = {"mps": torch.backends.mps.is_available, "xpu": torch.xpu.is_available}
    return ["cpu", "cuda", *(device for device, is_available in others.items() if is_available())]


def _versions() -> dict[str, str]:
    return {
        "cl_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": (
            f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
            f"{torch.get_num_threads()} threads"
        ),
        "cuda": _gpu_version(torch.version.cuda, "CUDA"),
        "rocm": _gpu_version(torch.version.hip, "ROCm"),
        "triton": _triton_version(),
    }


def _gpu_version(version: str | None, name: str) -> str:
    if not version:
        return f"none (this torch is built without {name})"
    return version if torch.cuda.is_available() else f"{version} (no GPU found)"


def _triton_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return "not installed"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GB"
