"""What a call would do (``explain``) and what is installed (``doctor``)."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cl_kernels import _recording
from cl_kernels._dispatch import Request, choose, reason_against, refusal
from cl_kernels._patches import patched
from cl_kernels._recording import PrimitiveCall
from cl_kernels._version import __version__
from cl_kernels.backends import BACKENDS, offered
from cl_kernels.statistics.table import STATISTICS, Statistic

# Visits of the tiles in units of 2 M N D operations: the product, and in the backward pass the
# product again and one for each gradient.
_FORWARD, _BACKWARD = 1, 3


@dataclass(frozen=True)
class Plan:
    """One primitive call: the path it takes and what that costs."""

    call: PrimitiveCall
    why: str

    @property
    def flops(self) -> tuple[float, float]:
        """Floating-point operations of the matrix products, (forward, backward)."""
        c, statistic = self.call, self._statistic
        products = 2 * c.M * c.N * c.request.width
        if statistic is None:
            return products, 0  # the backward pass of a search sees the pairs found only
        halved = statistic.of_one and c.request.device.type in BACKENDS[c.backend].halves_gram_on
        visited = products / 2 if halved else products
        guides = 2 * c.M * c.N * c.guide_width  # whose similarities are not symmetric
        return _FORWARD * visited + guides, _BACKWARD * visited + guides

    @property
    def _statistic(self) -> Statistic | None:
        return STATISTICS.get(self.call.primitive)

    @property
    def statistics_bytes(self) -> int:
        """Bytes kept between forward and backward beside the embeddings."""
        c, statistic = self.call, self._statistic
        if statistic is None:
            return 0
        width = 8 if c.request.dtype == torch.float64 else 4
        return width * (c.M + (c.N if statistic.sides == "row_col" else 0))

    @property
    def dense_bytes(self) -> int:
        """Bytes of the one M x N matrix of logits that is never made."""
        c = self.call
        return c.M * c.N * (8 if c.request.dtype == torch.float64 else 4)

    def __str__(self) -> str:
        c, request = self.call, self.call.request
        forward, backward = self.flops
        matrix = (
            "holds the M x N matrix"
            if c.backend == "reference"
            else f"keeps {_bytes(self.statistics_bytes)} of statistics; "
            f"the matrix would take {_bytes(self.dense_bytes)}"
        )
        return (
            f"{c.primitive}: {c.M} x {c.N} pairs, width {request.width}, "
            f"{_name(request.dtype)} on {request.device}, "
            f"tile products in {_name(request.compute_dtype)}\n"
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
    for name in offered(call.request.device.type):
        if name == call.backend:
            break
        reasons.append(f"{name}: {refusal(name, call.request)}")
    return "; ".join(reasons) or f"first choice on {call.request.device}"


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
            serving[device] = _served_by(device)
        except ValueError as error:
            serving[device] = None
            refusals[device] = str(error)
    reasons = {
        (device, name): reason_against(name, device, torch.float32)
        for device in serving
        for name in BACKENDS
    }
    return Report(_versions(), serving, reasons, refusals)


def _served_by(device: str) -> str:
    """The backend that serves float32 embeddings on such a device."""
    float32 = torch.float32, torch.float32
    return choose(None, Request("row_logsumexp", torch.device(device), *float32, width=128))


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
        "patched": ", ".join(patched()) or "no library",
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
