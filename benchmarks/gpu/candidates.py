"""Lines of the configuration table that no GPU has judged, beside today's: an A/B in one process.

Both take turns, and their results must agree. What wins is printed as the table's new line; a
person decides.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.gpu import contestants
from benchmarks.gpu.cases import GpuCase
from benchmarks.gpu.compare import largest, relative
from benchmarks.gpu.device import device, rehearsed
from benchmarks.gpu.measure import plan, sample, settings
from cl_kernels.backends.gpu import cuts
from cl_kernels.backends.triton import configs
from cl_kernels.backends.triton.configs import Config, configured_as
from cl_kernels.backends.triton.table import CANDIDATES

ARCH = 90
AGREE = 1e-2  # relative, of results in bfloat16
PAIRS = 9
BUDGET = 0.8  # seconds a contestant


class Candidate(NamedTuple):
    """Other configurations for some families, or another shape of slabs, in one call."""

    case: GpuCase
    families: tuple[str, ...] = ()
    slabs: tuple[int, int] | None = None

    def __str__(self) -> str:
        shape = [f"slabs {self.slabs[0]} x {self.slabs[1]}"] if self.slabs else []
        return f"{self.case}: {', '.join([*self.families, *shape])}"

    @property
    def lines(self) -> dict[tuple[int, str, str, int], Config]:
        width = configs.padded_width(self.case.width)
        keys = [configs.line(ARCH, family, "half", width) for family in self.families]
        return {key: CANDIDATES[key] for key in keys}

    @contextmanager
    def tried(self) -> Iterator[None]:
        lines = {family: config for (_, family, _, _), config in self.lines.items()}
        shape = cuts.SLAB_SHAPE
        with configured_as(lines):
            cuts.SLAB_SHAPE = self.slabs or shape
            try:
                yield
            finally:
                cuts.SLAB_SHAPE = shape


CLIP = GpuCase("clip", 65536, 768)
NT_XENT = GpuCase("nt_xent", 65536, 512)
INFO_NCE = GpuCase("info_nce", 32768, 1024)
SQUARE, LONG = (8448, 8448), (16896, 7936)

TRIED = (
    Candidate(CLIP, ("weights",)),
    Candidate(NT_XENT, ("weights",)),
    Candidate(INFO_NCE, ("weights",)),
    Candidate(INFO_NCE, ("row_forward",)),  # filtered, which has a line of its own
    Candidate(GpuCase("topk", 8192, 256, keys=65536, k=16), ("topk",)),
    Candidate(CLIP, slabs=LONG),
    Candidate(CLIP, slabs=SQUARE),
    Candidate(NT_XENT, slabs=SQUARE),
    Candidate(INFO_NCE, slabs=LONG),
)
CASES = {str(candidate): candidate for candidate in TRIED}


def disagreement(ours: Any, theirs: Any) -> float:
    """The largest relative difference of two calls' results; of indices, the share that differ."""
    pairs = zip(_tensors(ours), _tensors(theirs), strict=True)
    return largest(
        relative(a, b) if a.is_floating_point() else float((a != b).double().mean())
        for a, b in pairs
    )


def _tensors(result: Any) -> list[Tensor]:
    values = result if isinstance(result, tuple) else (result,)
    return [x for x in values if isinstance(x, Tensor)]


def work(case: str) -> dict[str, Any]:
    candidate = CASES[case]
    arch = configs.architecture(torch.device(device()))
    if arch != ARCH:
        return {"why": f"lines for sm_{ARCH}, this is sm_{arch}"}
    with settings(deterministic=False):
        step = contestants.ours(
            candidate.case, contestants.make_inputs(candidate.case, device(large=True))
        )
        today = step()
        with candidate.tried():
            tried = step()
        if rehearsed():
            return {}
        differs = disagreement(tried, today)
        del today, tried
        times: tuple[list[float], list[float]] = ([], [])
        loops, count = plan(step, BUDGET)
        for _ in range(min(count, PAIRS)):
            with candidate.tried():
                times[0].append(sample(step, loops))
            times[1].append(sample(step, loops))
    result = timing.compare(*times)
    agrees = differs <= AGREE
    found: dict[str, Any] = {
        "seconds": result["ours_seconds"],
        "today": result["rival_seconds"],
        "ratio": result["ratio"],
        "differs": differs,
        "spread": statistics.pstdev(times[1]) / result["rival_seconds"],
    }
    if not agrees:
        found["error"] = f"results differ by {differs:.1e} from today's"
    elif result["ratio"] < 1:
        found["lines"] = [f"    {key}: {config}," for key, config in candidate.lines.items()]
        if candidate.slabs:
            found["lines"].append(f"SLAB_SHAPE = {candidate.slabs}")
    return found


def worth(result: dict[str, Any]) -> bool:
    """Faster by more than today's own times vary."""
    return "error" not in result and result.get("ratio", 1.0) < 1 - 2 * result.get("spread", 0.0)
