"""The configurations, one a line: (architecture, kernel family, kind of product, width up to).

Chosen by compiling: nothing spills and shared memory suffices in any of ``variants.variants``.
Which of the configurations that fit is fastest is an estimate until a GPU has measured it, as an
H200 has, for half types on sm_90, "self_forward" and "weights" of wide rows and "topk" of 128 and
256 columns; the autotuner prints the line that replaces one here. Where there is a family with
"_masked", it serves the calls that mask tiles: those with filters, and those of sizes that tiles do
not divide.
"""

from typing import NamedTuple

WIDE = 4096  # any width: rows are read BLOCK_D columns at a time


class Config(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int  # 0: the rows' whole width in one tile
    num_warps: int
    num_stages: int


# fmt: off
TABLE: dict[tuple[int, str, str, int], Config] = {
    (80, "row_forward", "half", 64): Config(128, 128, 0, 8, 3),
    (80, "row_forward", "half", 128): Config(128, 128, 0, 8, 3),
    (80, "row_forward", "half", 256): Config(128, 128, 0, 8, 2),
    (80, "row_forward", "half", WIDE): Config(128, 128, 64, 8, 4),
    (80, "row_col_forward", "half", 64): Config(128, 128, 0, 8, 3),
    (80, "row_col_forward", "half", 128): Config(128, 128, 0, 8, 3),
    (80, "row_col_forward", "half", 256): Config(128, 128, 0, 8, 2),
    (80, "row_col_forward", "half", WIDE): Config(128, 128, 64, 8, 4),
    (80, "self_forward", "half", 64): Config(128, 128, 0, 8, 3),
    (80, "self_forward", "half", 128): Config(128, 128, 0, 8, 3),
    (80, "self_forward", "half", 256): Config(128, 128, 0, 8, 2),
    (80, "self_forward", "half", WIDE): Config(128, 128, 64, 8, 4),
    (80, "mean_key", "half", 64): Config(128, 128, 0, 8, 3),
    (80, "mean_key", "half", 128): Config(128, 64, 0, 8, 3),
    (80, "mean_key", "half", 256): Config(64, 64, 0, 8, 2),
    (80, "backward", "half", 64): Config(128, 128, 0, 8, 2),
    (80, "backward", "half", 128): Config(128, 64, 0, 8, 3),
    (80, "backward_both", "half", 64): Config(128, 64, 0, 8, 3),
    (80, "backward_both", "half", 128): Config(64, 64, 0, 8, 2),
    (80, "self_backward", "half", 64): Config(128, 64, 0, 8, 3),
    (80, "self_backward", "half", 128): Config(64, 64, 0, 8, 2),
    (80, "weights", "half", WIDE): Config(128, 128, 32, 8, 4),
    (80, "topk", "half", 64): Config(128, 64, 0, 8, 3),
    (80, "topk", "half", 128): Config(128, 64, 0, 8, 3),
    (80, "topk", "half", WIDE): Config(128, 64, 64, 8, 2),

    (80, "row_forward", "tf32", WIDE): Config(128, 128, 32, 8, 3),
    (80, "row_col_forward", "tf32", WIDE): Config(128, 128, 32, 8, 3),
    (80, "self_forward", "tf32", WIDE): Config(128, 128, 32, 8, 3),
    (80, "mean_key", "tf32", 64): Config(128, 64, 0, 8, 2),
    (80, "mean_key", "tf32", 128): Config(64, 64, 0, 8, 2),
    (80, "backward", "tf32", 64): Config(128, 64, 0, 8, 2),
    (80, "backward", "tf32", 128): Config(64, 64, 0, 8, 2),
    (80, "backward_both", "tf32", 64): Config(128, 64, 0, 8, 2),
    (80, "backward_both", "tf32", 128): Config(64, 64, 0, 8, 2),
    (80, "self_backward", "tf32", 64): Config(64, 32, 0, 8, 2),
    (80, "self_backward", "tf32", 128): Config(64, 64, 0, 8, 2),
    (80, "weights", "tf32", WIDE): Config(128, 128, 32, 8, 3),
    (80, "topk", "tf32", WIDE): Config(128, 64, 32, 8, 2),

    (80, "row_forward", "ieee", WIDE): Config(64, 64, 32, 8, 2),
    (80, "row_col_forward", "ieee", WIDE): Config(64, 64, 32, 4, 2),
    (80, "self_forward", "ieee", WIDE): Config(64, 64, 32, 8, 2),
    (80, "mean_key", "ieee", 32): Config(64, 64, 0, 8, 2),
    (80, "mean_key", "ieee", 64): Config(64, 32, 0, 8, 1),
    (80, "backward", "ieee", 32): Config(64, 64, 0, 8, 2),
    (80, "backward", "ieee", 64): Config(64, 32, 0, 8, 1),
    (80, "backward_both", "ieee", 32): Config(64, 64, 0, 8, 2),
    (80, "backward_both", "ieee", 64): Config(64, 32, 0, 8, 1),
    (80, "self_backward", "ieee", 32): Config(64, 64, 0, 8, 2),
    (80, "self_backward", "ieee", 64): Config(64, 32, 0, 8, 1),
    (80, "weights", "ieee", WIDE): Config(64, 64, 32, 4, 2),
    (80, "topk", "ieee", WIDE): Config(64, 64, 32, 8, 2),

    (90, "row_forward", "half", 64): Config(128, 128, 0, 8, 3),
    (90, "row_forward", "half", 128): Config(128, 128, 0, 8, 3),
    (90, "row_forward", "half", 256): Config(128, 128, 0, 8, 2),
    (90, "row_forward", "half", WIDE): Config(128, 256, 64, 8, 3),
    (90, "row_forward_masked", "half", 64): Config(128, 128, 0, 8, 3),
    (90, "row_forward_masked", "half", 128): Config(128, 128, 0, 8, 3),
    (90, "row_forward_masked", "half", 256): Config(128, 128, 0, 8, 2),
    (90, "row_forward_masked", "half", WIDE): Config(128, 128, 64, 8, 4),
    (90, "row_col_forward", "half", 64): Config(128, 128, 0, 8, 3),
    (90, "row_col_forward", "half", 128): Config(128, 128, 0, 8, 3),
    (90, "row_col_forward", "half", 256): Config(128, 128, 0, 8, 2),
    (90, "row_col_forward", "half", WIDE): Config(128, 128, 64, 8, 4),
    (90, "self_forward", "half", 64): Config(128, 128, 0, 8, 3),
    (90, "self_forward", "half", 128): Config(128, 128, 0, 8, 3),
    (90, "self_forward", "half", 256): Config(128, 128, 0, 8, 2),
    (90, "self_forward", "half", WIDE): Config(128, 128, 64, 4, 3),
    (90, "mean_key", "half", 64): Config(128, 128, 0, 8, 3),
    (90, "mean_key", "half", 128): Config(128, 128, 0, 8, 2),
    (90, "mean_key", "half", 256): Config(128, 64, 0, 8, 2),
    (90, "backward", "half", 64): Config(128, 128, 0, 8, 2),
    (90, "backward", "half", 128): Config(128, 64, 0, 8, 3),
    (90, "backward_masked", "half", 64): Config(128, 64, 0, 8, 3),
    (90, "backward_masked", "half", 128): Config(128, 64, 0, 8, 3),
    (90, "backward_both", "half", 64): Config(128, 128, 0, 8, 3),
    (90, "backward_both", "half", 128): Config(128, 64, 0, 8, 3),
    (90, "backward_both_masked", "half", 64): Config(128, 64, 0, 8, 3),
    (90, "backward_both_masked", "half", 128): Config(128, 64, 0, 8, 3),
    (90, "self_backward", "half", 64): Config(128, 128, 0, 8, 3),
    (90, "self_backward", "half", 128): Config(128, 64, 0, 8, 3),
    (90, "self_backward_masked", "half", 64): Config(128, 64, 0, 8, 3),
    (90, "self_backward_masked", "half", 128): Config(128, 64, 0, 8, 3),
    (90, "weights", "half", WIDE): Config(128, 128, 64, 4, 3),
    (90, "topk", "half", 64): Config(128, 128, 0, 8, 3),
    (90, "topk", "half", 128): Config(64, 32, 0, 4, 4),
    (90, "topk", "half", 256): Config(64, 64, 0, 4, 3),
    (90, "topk", "half", WIDE): Config(128, 128, 64, 8, 4),

    (90, "row_forward", "tf32", WIDE): Config(128, 128, 32, 8, 3),
    (90, "row_col_forward", "tf32", WIDE): Config(128, 128, 32, 8, 3),
    (90, "self_forward", "tf32", WIDE): Config(128, 128, 32, 8, 3),
    (90, "mean_key", "tf32", 64): Config(128, 64, 0, 8, 2),
    (90, "mean_key", "tf32", 128): Config(64, 64, 0, 8, 2),
    (90, "backward", "tf32", 64): Config(128, 64, 0, 8, 2),
    (90, "backward", "tf32", 128): Config(64, 64, 0, 8, 2),
    (90, "backward_both", "tf32", 64): Config(128, 64, 0, 8, 2),
    (90, "backward_both", "tf32", 128): Config(64, 64, 0, 8, 2),
    (90, "self_backward", "tf32", 64): Config(128, 64, 0, 8, 2),
    (90, "self_backward", "tf32", 128): Config(64, 64, 0, 8, 2),
    (90, "weights", "tf32", WIDE): Config(128, 128, 32, 8, 3),
    (90, "topk", "tf32", WIDE): Config(128, 128, 32, 8, 3),

    (90, "row_forward", "ieee", WIDE): Config(64, 64, 32, 8, 2),
    (90, "row_col_forward", "ieee", WIDE): Config(64, 64, 32, 4, 2),
    (90, "self_forward", "ieee", WIDE): Config(64, 64, 32, 8, 2),
    (90, "mean_key", "ieee", 32): Config(64, 64, 0, 8, 2),
    (90, "mean_key", "ieee", 64): Config(64, 32, 0, 8, 1),
    (90, "backward", "ieee", 32): Config(64, 64, 0, 8, 2),
    (90, "backward", "ieee", 64): Config(64, 32, 0, 8, 1),
    (90, "backward_both", "ieee", 32): Config(64, 64, 0, 8, 2),
    (90, "backward_both", "ieee", 64): Config(64, 32, 0, 8, 1),
    (90, "self_backward", "ieee", 32): Config(64, 64, 0, 8, 2),
    (90, "self_backward", "ieee", 64): Config(64, 32, 0, 8, 1),
    (90, "weights", "ieee", WIDE): Config(64, 64, 32, 4, 2),
    (90, "topk", "ieee", WIDE): Config(64, 32, 32, 8, 2),

    (100, "row_forward", "half", 64): Config(128, 128, 0, 8, 3),
    (100, "row_forward", "half", 128): Config(128, 128, 0, 8, 3),
    (100, "row_forward", "half", 256): Config(128, 128, 0, 8, 2),
    (100, "row_forward", "half", WIDE): Config(128, 128, 64, 8, 4),
    (100, "row_col_forward", "half", 64): Config(128, 128, 0, 8, 3),
    (100, "row_col_forward", "half", 128): Config(128, 128, 0, 8, 3),
    (100, "row_col_forward", "half", WIDE): Config(128, 64, 64, 8, 4),
    (100, "self_forward", "half", 64): Config(128, 128, 0, 8, 3),
    (100, "self_forward", "half", 128): Config(128, 128, 0, 8, 3),
    (100, "self_forward", "half", WIDE): Config(128, 64, 64, 8, 4),
    (100, "mean_key", "half", 64): Config(128, 64, 0, 8, 3),
    (100, "mean_key", "half", 128): Config(128, 64, 0, 8, 3),
    (100, "mean_key", "half", 256): Config(64, 64, 0, 8, 2),
    (100, "backward", "half", 64): Config(128, 64, 0, 8, 3),
    (100, "backward", "half", 128): Config(128, 64, 0, 8, 3),
    (100, "backward_both", "half", 64): Config(128, 64, 0, 8, 3),
    (100, "backward_both", "half", 128): Config(64, 64, 0, 8, 2),
    (100, "self_backward", "half", 64): Config(128, 64, 0, 8, 3),
    (100, "self_backward", "half", 128): Config(64, 64, 0, 8, 2),
    (100, "weights", "half", WIDE): Config(128, 128, 64, 8, 3),
    (100, "weights_masked", "half", WIDE): Config(128, 64, 64, 8, 3),
    (100, "topk", "half", 64): Config(128, 64, 0, 8, 3),
    (100, "topk", "half", 128): Config(128, 64, 0, 8, 3),
    (100, "topk", "half", 256): Config(128, 64, 0, 8, 2),
    (100, "topk", "half", WIDE): Config(128, 64, 64, 8, 4),

    (100, "row_forward", "tf32", WIDE): Config(128, 128, 32, 8, 3),
    (100, "row_col_forward", "tf32", WIDE): Config(128, 64, 32, 8, 3),
    (100, "self_forward", "tf32", WIDE): Config(128, 64, 32, 8, 3),
    (100, "mean_key", "tf32", 64): Config(128, 64, 0, 8, 2),
    (100, "mean_key", "tf32", 128): Config(64, 64, 0, 8, 2),
    (100, "backward", "tf32", 64): Config(128, 64, 0, 8, 2),
    (100, "backward", "tf32", 128): Config(64, 64, 0, 8, 2),
    (100, "backward_both", "tf32", 64): Config(64, 64, 0, 8, 2),
    (100, "backward_both", "tf32", 128): Config(64, 64, 0, 8, 2),
    (100, "self_backward", "tf32", 64): Config(64, 64, 0, 8, 2),
    (100, "self_backward", "tf32", 128): Config(64, 64, 0, 8, 2),
    (100, "weights", "tf32", WIDE): Config(128, 64, 32, 8, 3),
    (100, "topk", "tf32", WIDE): Config(128, 64, 32, 8, 3),

    (100, "row_forward", "ieee", WIDE): Config(64, 64, 32, 8, 2),
    (100, "row_col_forward", "ieee", WIDE): Config(64, 64, 32, 4, 2),
    (100, "self_forward", "ieee", WIDE): Config(64, 64, 32, 8, 2),
    (100, "mean_key", "ieee", 32): Config(64, 64, 0, 8, 2),
    (100, "mean_key", "ieee", 64): Config(64, 32, 0, 8, 1),
    (100, "backward", "ieee", 64): Config(64, 32, 0, 8, 1),
    (100, "backward_both", "ieee", 64): Config(64, 32, 0, 8, 1),
    (100, "self_backward", "ieee", 64): Config(64, 32, 0, 8, 1),
    (100, "weights", "ieee", WIDE): Config(64, 64, 16, 4, 2),
    (100, "topk", "ieee", WIDE): Config(64, 32, 32, 8, 2),
}

# How many loads and stores of spilled registers a line may have in some of its uses. An H200 was
# faster with it than with one that spills none, in the losses' uses and, for "self_forward",
# without a bound of the logits; other uses were not timed.
MAY_SPILL: dict[tuple[int, str, str, int], int] = {
    (90, "self_forward", "half", WIDE): 100,
    (90, "weights", "half", WIDE): 20,
}

# Lines that no GPU has judged since the kernels are as they are; ``benchmarks.gpu`` measures them
# beside those above.
CANDIDATES: dict[tuple[int, str, str, int], Config] = {
    (90, "weights", "half", WIDE): Config(128, 128, 64, 8, 4),
    (90, "row_forward", "half", WIDE): Config(128, 256, 64, 8, 3),
    (90, "topk", "half", 256): Config(64, 32, 0, 4, 4),
}
# fmt: on
