"""What is measured on a GPU: the goals' sizes, and small batches against eager PyTorch."""

from __future__ import annotations

from typing import NamedTuple

GB = 10**9
WORKSPACE = 64 * 10**6  # bytes beyond results that a search may take


class GpuCase(NamedTuple):
    """A loss, or a primitive's forward pass, of a rows x rows similarity matrix, in bfloat16.

    "topk" finds the ``k`` best of ``keys`` keys for each row; so does "topk_filtered", with a
    ceiling, 64 excluded keys and a label for each row.
    """

    name: str
    rows: int
    width: int
    goal: float | None = None  # seconds
    goal_bytes: float | None = None  # beyond inputs and gradients
    deterministic: bool = False
    keys: int = 0
    k: int = 0
    predicted: float | None = None  # seconds, by the static cost model (``tools.goals``)

    def __str__(self) -> str:
        size = f"{self.rows}x{self.width}" + f"-k{self.k}of{self.keys}" * self.is_search
        return f"{self.name}-{size}" + "-deterministic" * self.deterministic

    @property
    def is_search(self) -> bool:
        return self.k > 0

    @property
    def forward_only(self) -> bool:
        return self.is_search or self.name.endswith("logsumexp")

    @property
    def fits_meta(self) -> bool:
        """Whether host code reads no values, so that meta tensors can rehearse it."""
        return self.name != "topk_filtered"

    @property
    def product_flop(self) -> float:
        """Of one product of all pairs."""
        return 2.0 * self.rows * (self.keys or self.rows) * self.width


def _forward(width: int, teraflops: float, predicted: float) -> GpuCase:
    case = GpuCase("row_logsumexp", 65536, width, predicted=predicted)
    return case._replace(goal=case.product_flop / teraflops / 1e12)


def _search(rows: int, keys: int, width: int, k: int, goal: float | None = None) -> GpuCase:
    return GpuCase("topk", rows, width, goal, WORKSPACE if goal else None, keys=keys, k=k)


# In order of interest: what time is left for is measured. Goals are those for one H100.
GOALS = (
    GpuCase("clip", 65536, 768, goal=46e-3, predicted=48.7e-3),
    GpuCase("nt_xent", 65536, 512, goal=16.5e-3, predicted=15.1e-3),
    GpuCase("info_nce", 32768, 1024, goal=15.7e-3, deterministic=True, predicted=15.0e-3),
    _forward(512, 650, 7.06e-3),
    _forward(768, 690, 9.93e-3),
    _forward(1024, 710, 12.8e-3),
)
# The third goal was set for float16; bfloat16 takes the same time.
SEARCHES = (
    _search(16384, 100_000, 128, 10, 1.1e-3),
    _search(8192, 65536, 256, 16, 0.75e-3),
    _search(1000, 1_000_000, 768, 10, 3.6e-3),
    _search(16384, 100_000, 128, 1, 0.95e-3),
    _search(16384, 100_000, 128, 32, 1.2e-3),
    _search(16384, 100_000, 128, 10, 1.1 * 1.1e-3)._replace(name="topk_filtered"),
    _search(4096, 100_000, 384, 1000),
    _search(4096, 100_000, 384, 4096),
    _search(64, 2048, 128, 10),
    _search(1024, 8192, 768, 10),
)
HUGE = GpuCase("clip", 2**20, 512, goal=8.5, goal_bytes=12 * GB, predicted=8.9)

# Batches from which a loss must not be slower than eager PyTorch; nt_xent has two rows an image.
BATCHES = (64, 256, 1024, 4096)
SMALL = tuple(
    GpuCase(name, 2 * batch if name == "nt_xent" else batch, width)
    for width in (128, 768)
    for batch in BATCHES
    for name in ("nt_xent", "info_nce", "clip")
)
