"""The torch-free C++ schedules: every tile once, and none twice in a round."""

from collections import Counter

import pytest

cl_testing = pytest.importorskip(
    "cl_testing",
    reason="cl_testing is not built (python setup.py build_ext --inplace, with pybind11)",
)

COUNTS = range(18)


def check_turns(visits):
    """``visits``: (block, turn) in the order of the schedule."""
    seen = Counter()
    for block, turn in visits:
        assert turn == seen[block], (block, turn)
        seen[block] += 1


def rounds(tiles, size):
    """The tiles of each round, without byes."""
    for start in range(0, len(tiles), max(size, 1)):
        yield [tile for tile in tiles[start : start + size] if tile is not None]


@pytest.mark.parametrize("blocks", COUNTS)
def test_tournament(blocks):
    tiles = cl_testing.tournament(blocks)
    played = [tile for tile in tiles if tile is not None]
    pairs = sorted((row, col) for row, col, *_ in played)
    assert pairs == [(i, j) for i in range(blocks) for j in range(i, blocks)]
    visits = []
    for row, col, row_turn, col_turn in played:
        visits.append((row, row_turn))
        if row != col:
            visits.append((col, col_turn))
    check_turns(visits)
    for together in rounds(tiles[blocks:], (blocks + 1) // 2):
        touched = [block for row, col, *_ in together for block in (row, col)]
        assert len(set(touched)) == len(touched)


@pytest.mark.parametrize("rows", COUNTS)
def test_latin_square(rows):
    for cols in COUNTS:
        tiles = cl_testing.latin_square(rows, cols)
        pairs = sorted((row, col) for row, col, *_ in tiles)
        assert pairs == [(i, j) for i in range(rows) for j in range(cols)]
        check_turns((row, turn) for row, _, turn, _ in tiles)
        check_turns((col, turn) for _, col, _, turn in tiles)
        for together in rounds(tiles, min(rows, cols)):
            assert len({row for row, *_ in together}) == len(together)
            assert len({col for _, col, *_ in together}) == len(together)
