"""What is measured on a GPU: the goals' sizes, and small batches against eager PyTorch."""

from __future__ import annotations

from typing import NamedTuple

GB = 10**9


class GpuCase(NamedTuple):
    """A loss, or a primitive's forward pass, of a rows x rows similarity matrix, in bfloat16."""

    name: str
    rows: int
    width: int
    goal: float | None = None  # seconds
    goal_bytes: float | None = None  # beyond inputs and gradients
    deterministic: bool = False

    def __str__(self) -> str:
        return f"{self.name}-{self.rows}x{self.width}" + "-deterministic" * self.deterministic

    @property
    def forward_only(self) -> bool:
        return self.name.endswith("logsumexp")

    @property
    def product_flop(self) -> float:
        """Of one rows x rows product."""
        return 2.0 * self.rows**2 * self.width

    @property
    def matrix_bytes(self) -> int:
        """The similarity matrix in bfloat16."""
        return 2 * self.rows**2


def _forward(width: int, teraflops: float) -> GpuCase:
    case = GpuCase("row_logsumexp", 65536, width)
    return case._replace(goal=case.product_flop / teraflops / 1e12)


# In order of interest: what time is left for is measured. Goals are those for one H100.
GOALS = (
    GpuCase("clip", 65536, 768, goal=46e-3),
    GpuCase("nt_xent", 65536, 512, goal=16.5e-3),
    GpuCase("info_nce", 32768, 1024, goal=15.7e-3, deterministic=True),
    _forward(512, 650),
    _forward(768, 690),
    _forward(1024, 710),
)
HUGE = GpuCase("clip", 2**20, 512, goal=8.5, goal_bytes=12 * GB)

# Batches from which a loss must not be slower than eager PyTorch; nt_xent has two rows an image.
BATCHES = (64, 256, 1024, 4096)
SMALL = tuple(
    GpuCase(name, 2 * batch if name == "nt_xent" else batch, width)
    for width in (128, 768)
    for batch in BATCHES
    for name in ("nt_xent", "info_nce", "clip")
)

TINY = {
    "goals": (
        GpuCase("clip", 96, 48, goal=1.0),
        GpuCase("nt_xent", 96, 48, goal=1.0),
        GpuCase("info_nce", 96, 48, goal=1.0, deterministic=True),
        GpuCase("row_logsumexp", 96, 48, goal=1.0),
    ),
    "huge": (GpuCase("clip", 128, 48, goal=1.0),),
    "small": (GpuCase("nt_xent", 64, 16), GpuCase("info_nce", 32, 16), GpuCase("clip", 32, 16)),
}
SUITES = {"goals": GOALS, "small": SMALL, "huge": (HUGE,)}
