"""Lists of keys in every form that people give them."""

import pytest
import torch

from cl_kernels import CSR
from cl_kernels.csr import as_csr

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
    assert lists(csr.within_rows_sorted()) == [sorted(row) for row in ROWS]
    assert lists(csr.between(1, 6)) == [[k - 1 for k in row if 1 <= k < 6] for row in ROWS]


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
