"""How far embeddings of the same items moved between two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._precision import widest
from cl_kernels.checks import check_count
from cl_kernels.pairs import PairFilter
from cl_kernels.search import topk

from .checks import check_finite_embeddings, check_number
from .ties import tied_share

_ROWS = 8192  # rows that are converted to the widest type at a time
_COLLAPSED = 2000  # variance of unit vectors that is but rounding, in units of eps^2


class Norms(NamedTuple):
    """The distribution of the embeddings' lengths."""

    mean: float
    std: float
    min: float
    median: float
    max: float

    @classmethod
    def of(cls, x: Tensor) -> Norms:
        norms = torch.cat([torch.linalg.vector_norm(_wide(rows), dim=1) for rows in x.split(_ROWS)])
        return cls(
            norms.mean().item(),
            norms.std(correction=0).item(),
            norms.min().item(),
            norms.median().item(),
            norms.max().item(),
        )


@dataclass(frozen=True)
class DriftReport:
    """What changed from one snapshot of N embeddings to another; see ``embedding_drift``.

    Attributes:
        items: N.
        k: Neighbours compared.
        neighbour_overlap: Mean share of an item's k nearest neighbours that are still among them.
        nearest_changed: Share of the items whose nearest neighbour is another one.
        tied: Share of the items whose k-th neighbour is as near as the next one, in the snapshot
            that has more of them: which one is kept depends on their order. There is a warning if
            it exceeds 1 %.
        cosine: Mean cosine of an item with itself; None where the widths differ.
        aligned_cosine: The same after the best rotation or reflection.
        linear_cka: Similarity of the two geometries, 0 to 1; NaN if one snapshot is collapsed.
        norms_before, norms_after: Lengths of the embeddings.
    """

    items: int
    k: int
    neighbour_overlap: float
    nearest_changed: float
    tied: float
    cosine: float | None
    aligned_cosine: float
    linear_cka: float
    norms_before: Norms
    norms_after: Norms

    def drifted(self, threshold: float = 0.8) -> bool:
        """Whether less than this share of the neighbours was kept.

        Neighbours are what retrieval returns, and a mere rotation keeps them all. What share is
        tolerable depends on the use; two runs that differ in their seed alone tell what to expect.
        """
        check_number("threshold", threshold, "a share from 0 to 1", lambda x: 0 <= x <= 1)
        return self.neighbour_overlap < threshold

    def __str__(self) -> str:
        cosine = "widths differ" if self.cosine is None else f"{self.cosine:.4f}"
        lengths = "  ".join(
            f"{name} {old:.4g} -> {new:.4g}"
            for name, old, new in zip(
                Norms._fields, self.norms_before, self.norms_after, strict=True
            )
        )
        return (
            f"{self.items} items, {self.k} nearest neighbours\n"
            f"neighbours kept            {self.neighbour_overlap:.4f}\n"
            f"nearest neighbour changed  {self.nearest_changed:.4f}\n"
            f"tied neighbours            {self.tied:.4f}\n"
            f"cosine                     {cosine}\n"
            f"cosine after alignment     {self.aligned_cosine:.4f}\n"
            f"linear CKA                 {self.linear_cka:.4f}\n"
            f"length                     {lengths}"
        )


def embedding_drift(
    before: Tensor, after: Tensor, *, k: int = 10, backend: str | None = None
) -> DriftReport:
    """Compares two snapshots of the embeddings of the same items, e.g. of two model versions.

    Only directions count (embeddings are scaled to unit length first), but for the norms:

    - neighbour overlap and changed nearest neighbours by cosine, each item among all others
      (Wendlandt et al., "Factors Influencing the Surprising Instability of Word Embeddings",
      2018), exact, by ``topk``;
    - mean cosine of an item's two embeddings, and the same after orthogonal Procrustes alignment
      (Schönemann 1966; Hamilton et al., "Diachronic Word Embeddings", 2016): a rotation of the
      whole space changes neither neighbours nor this. The aligned mean is the sum of the singular
      values of ``before.T @ after`` divided by N; the narrower snapshot counts as padded with
      zeros;
    - linear centred kernel alignment (Kornblith et al., "Similarity of Neural Network
      Representations Revisited", 2019, equation 5).

    Memory is O(N (D + k) + D^2).

    Args:
        before: Shape [N, D1], finite; N >= 2.
        after: Of the same items in the same order, shape [N, D2], same device.
        k: Neighbours to compare, at most N - 1.
        backend: As in ``topk``.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    check_finite_embeddings("before", before)
    check_finite_embeddings("after", after)
    N = len(before)
    if len(after) != N:
        raise ValueError(f"after: expected one row for each of the {N} of before, got {len(after)}")
    if after.device != before.device:
        raise ValueError(
            f"after: expected the device of before, {before.device}, got {after.device}"
        )
    if N < 2:
        raise ValueError(f"before: expected at least two rows, got {N}")
    check_count("k", k, most=N - 1)
    with torch.no_grad():
        index = torch.arange(N, device=before.device)
        others = PairFilter(index, index, "different")
        # One neighbour more, where there is one, shows ties.
        found = [
            topk(x, x, min(k + 1, N - 1), where=others, backend=backend) for x in (before, after)
        ]
        old, new = (x.indices[:, :k] for x in found)
        together = torch.cat([old, new], 1).sort(dim=1).values  # [N, 2k]; a kept one comes twice
        kept = (together[:, 1:] == together[:, :-1]).sum()
        cosine, aligned_cosine, linear_cka = _geometry(before, after)
        return DriftReport(
            items=N,
            k=k,
            neighbour_overlap=kept.item() / (N * k),
            nearest_changed=int((old[:, 0] != new[:, 0]).sum()) / N,
            tied=max(tied_share(x.values, k) for x in found),
            cosine=cosine,
            aligned_cosine=aligned_cosine,
            linear_cka=linear_cka,
            norms_before=Norms.of(before),
            norms_after=Norms.of(after),
        )


def _geometry(before: Tensor, after: Tensor) -> tuple[float | None, float, float]:
    """Mean cosine, the same after alignment, and linear CKA, from moments in the widest type."""
    N = len(before)
    center_old, center_new = _center(before), _center(after)
    cross = center_old.new_zeros(before.shape[1], after.shape[1])
    cross_centered = torch.zeros_like(cross)
    gram_old = cross.new_zeros(before.shape[1], before.shape[1])
    gram_new = cross.new_zeros(after.shape[1], after.shape[1])
    for first in range(0, N, _ROWS):
        old, new = (_unit(x[first : first + _ROWS]) for x in (before, after))
        cross += old.T @ new
        old, new = old - center_old, new - center_new
        cross_centered += old.T @ new
        gram_old += old.T @ old
        gram_new += new.T @ new
    same_width = before.shape[1] == after.shape[1]
    rounding = N * _COLLAPSED * torch.finfo(cross.dtype).eps ** 2
    collapsed = min(gram_old.trace().item(), gram_new.trace().item()) < rounding
    similarity = cross_centered.square().sum() / (gram_old.norm() * gram_new.norm())
    return (
        cross.trace().item() / N if same_width else None,
        torch.linalg.svdvals(cross).sum().item() / N,
        torch.nan if collapsed else similarity.item(),
    )


def _wide(rows: Tensor) -> Tensor:
    return rows.to(widest(rows.device))


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(_wide(rows))


def _center(x: Tensor) -> Tensor:
    return torch.stack([_unit(rows).sum(0) for rows in x.split(_ROWS)]).sum(0) / len(x)
