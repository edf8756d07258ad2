"""Lists of keys in every form that people give them."""

import pytest
import torch

from cl_kernels import CSR
from cl_kernels.csr import as_csr, left_out

CPU = torch.device("cpu")


def lists(csr):
    return [csr.keys[a:b].tolist() for a, b in zip(csr.offsets[:-1], csr.offsets[1:], strict=True)]


def of(rows):
    counts = torch.tensor([0, *map(len, rows)])
    return CSR(counts.cumsum(0), torch.tensor([k for row in rows for k in row], dtype=torch.int64))


ROWS = [[5, 2, 2], [], [0], [7, 1], []]


def test_forms():
    assert lists(as_csr("x", of(ROWS), 5, 8, CPU)) == ROWS
    assert lists(as_csr("x", tuple(x.int() for x in of(ROWS)), 5, 8, CPU)) == ROWS
    assert lists(as_csr("x", torch.tensor([3, 0]), 2, 4, CPU)) == [[3], [0]]
    padded = torch.tensor([[5, -1, 2], [-1, -1, -1], [0, 1, 2]])
    assert lists(as_csr("x", padded, 3, 6, CPU)) == [[5, 2], [], [0, 1, 2]]
    assert lists(as_csr("x", torch.empty(0, dtype=torch.int64), 0, 4, CPU)) == []


def test_parts():
    csr = of(ROWS)
    assert csr.counts().tolist() == [3, 0, 1, 2, 0]
    assert csr.rows().tolist() == [0, 0, 0, 2, 3, 3]
    assert lists(csr.gather(torch.tensor([3, 0, 1, 3]))) == [ROWS[i] for i in (3, 0, 1, 3)]
    assert lists(csr.gather(torch.tensor([], dtype=torch.int64))) == []
    assert lists(csr.between(1, 6)) == [[k - 1 for k in row if 1 <= k < 6] for row in ROWS]


def test_of_python_lists_and_masks():
    assert lists(CSR.from_lists(ROWS)) == ROWS
    named = {i: row for i, row in enumerate(ROWS) if row}
    assert lists(CSR.from_lists(named, 5)) == ROWS
    assert lists(CSR.from_lists(named)) == ROWS[:4]
    assert lists(CSR.from_lists([])) == lists(CSR.from_lists({})) == []
    assert lists(as_csr("x", ROWS, 5, 8, CPU)) == lists(as_csr("x", named, 5, 8, CPU)) == ROWS
    assert lists(as_csr("x", mask_of(ROWS, 8), 5, 8, CPU)) == [sorted({*row}) for row in ROWS]


def mask_of(rows, columns):
    mask = torch.zeros(len(rows), columns, dtype=torch.bool)
    for i, keys in enumerate(rows):
        mask[i, keys] = True
    return mask


def test_what_a_search_leaves_out_is_sorted():
    padded = torch.tensor([[5, 2, -1], [-1, -1, -1], [0, 2, 1]])
    assert lists(left_out("x", padded, 3, 8, CPU)) == [[-1, 2, 5], [-1, -1, -1], [0, 1, 2]]
    for form in (of(ROWS), ROWS):
        assert lists(left_out("x", form, 5, 8, CPU)) == [sorted(row) for row in ROWS]
    mask = mask_of(ROWS, 8)
    assert lists(left_out("x", mask, 5, 8, CPU)) == [sorted({*row}) for row in ROWS]


def test_what_cannot_be_read_stays_inside(monkeypatch):
    """As on a GPU: wrong offsets and keys leave out what they may, and nothing is read beyond."""
    monkeypatch.setattr("cl_kernels.csr.readable", lambda _: False)
    wrong = torch.tensor([-3, 9, 1, 99]), torch.tensor([7, -5, 2**62])
    offsets, keys = left_out("x", wrong, 3, 8, CPU)
    assert offsets.tolist() == [0, 3, 3, 3] and keys.tolist() == [-1, 7, 8]


@pytest.mark.parametrize(
    "value, error, message",
    [
        ("no", TypeError, r"lists: expected a CSR .* got str"),
        (
            torch.tensor([0.5, 1]),
            TypeError,
            r"lists: expected an integer tensor, got torch.float32",
        ),
        (torch.tensor([1, 2, 0]), ValueError, r"lists: expected one row for each of the 2 queries"),
        (torch.zeros(2, 1, 1, dtype=torch.int64), ValueError, r"lists: expected a 1-D or 2-D"),
        (torch.tensor([0, 9]), ValueError, r"lists: expected keys in \[0, 9\), got 0 to 9"),
        (torch.tensor([0, -1]), ValueError, r"lists: expected keys in \[0, 9\), got -1 to 0"),
        (torch.tensor([[0, -2], [1, 1]]), ValueError, r"lists: .*-1 as padding, got -2"),
        (of([[1]]), ValueError, r"lists: expected offsets of length 3, .* got 2"),
        (
            (torch.tensor([0, 2, 1]), torch.tensor([0])),
            ValueError,
            r"lists: expected rising offsets",
        ),
        (
            (torch.tensor([1, 1, 1]), torch.tensor([0])),
            ValueError,
            r"lists: .* from 0 to .* 1 to 1",
        ),
        ((torch.tensor([0, 1, 3]), torch.tensor([0])), ValueError, r"lists: .* got 0 to 3"),
        ((torch.tensor([0, 1, 1]), [0]), TypeError, r"lists keys: expected an integer tensor"),
        ((torch.tensor([0, 1, 1]), torch.tensor([True])), TypeError, r"lists keys: .*torch.bool"),
    ],
)
def test_errors(value, error, message):
    with pytest.raises(error, match=message):
        as_csr("lists", value, 2, 9, CPU)
