"""GIST: another model's embeddings say which negatives are false."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels._precision import accumulator
from cl_kernels.checks import as_bound, as_scalar, as_vector, check_embeddings, check_matches
from cl_kernels.losses.both_sides import joint, of_both, one_way, over_both_sides
from cl_kernels.losses.common import (
    Reduction,
    as_inputs,
    check_choice,
    check_reduction,
    check_same_rows,
    inverse,
    logit_bound,
    total,
)
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.ranks.group import Group
from cl_kernels.statistics.positives import pair_logits
from cl_kernels.statistics.rows import float_rows


def gist(
    anchors: Tensor,
    positives: Tensor,
    guide_anchors: Tensor,
    guide_positives: Tensor,
    negatives: Tensor | None = None,
    guide_negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.01,
    margin_strategy: Literal["absolute", "relative"] = "absolute",
    margin: float | Tensor = 0.0,
    contrast_anchors: bool = True,
    contrast_positives: bool = True,
    guide_scores: Tensor | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """InfoNCE without the negatives that a guide model finds closer than the positive.

    Solatorio, "GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding
    Fine-tuning" (2024), equations 3 to 6. Row i compares its anchor with all positives, all
    negatives and, if wanted, the other anchors, and its positive with the other positives. A pair
    is dropped if the guide's similarity of it is above the guide's of (anchor i, positive i) less
    the margin; (anchor i, positive i) itself never is.

    Args:
        anchors: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        positives: Row i is the positive of anchor i, shape [B, D], same dtype and device.
        guide_anchors: The guide's embeddings of the anchors, shape [B, G]. No gradient flows to
            what the guide says.
        guide_positives: The guide's of the positives, shape [B, G].
        negatives: Further negatives of every anchor, shape [N, D], e.g. one hard one for each.
        guide_negatives: The guide's of these, shape [N, G].
        temperature: A number other than zero, or a 0-d tensor that may require grad.
        margin_strategy: A pair is dropped above ``s - margin`` (``"absolute"``) or above
            ``s - margin * |s|`` (``"relative"``), s the guide's similarity of anchor i and its
            positive.
        margin: A finite number. No gradient flows to it.
        contrast_anchors: Whether other anchors are negatives of an anchor.
        contrast_positives: Whether other positives are negatives of a positive.
        guide_scores: What stands for s, shape [B], e.g. a cross-encoder's. Default: the
            similarity of ``guide_anchors`` and ``guide_positives``.
        normalize: Divide rows by their length first (cosine similarity), the guide's too.
        reduction: ``"mean"`` or ``"sum"`` over the anchors, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"``; float32 (float64 for float64 inputs).
        An anchor all of whose negatives are dropped has loss 0 and gradient 0; the mean over an
        empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = gist(queries, documents, guide(queries), guide(documents), margin=0.05)
    """
    if over_several(gather, group):
        return over_ranks(gist, locals())
    if (negatives is None) != (guide_negatives is None):
        names = ["negatives", "guide_negatives"]
        missing, given = names if negatives is None else reversed(names)
        raise ValueError(f"{missing}: expected together with {given}, got None")
    rows = {"anchors": anchors, "positives": positives}
    guides = {"anchors": guide_anchors, "positives": guide_positives}
    if negatives is not None and guide_negatives is not None:
        rows["negatives"], guides["negatives"] = negatives, guide_negatives
    rows = dict(zip(rows, as_inputs(**rows), strict=True))
    check_same_rows("positives", rows["positives"], "anchors", rows["anchors"])
    check_choice("margin_strategy", margin_strategy, ("absolute", "relative"))
    check_flag("contrast_anchors", contrast_anchors)
    check_flag("contrast_positives", contrast_positives)
    check_reduction(reduction)
    like = rows["anchors"]
    guides = _guides(guides, rows, normalize)
    scale = inverse(temperature, like)
    ceiling = _ceiling(guides, guide_scores, margin_strategy, margin, like)
    options = {"logit_bound": logit_bound(normalize, temperature=temperature), "backend": backend}
    pair = rows["anchors"], rows["positives"], scale
    if contrast_anchors or contrast_positives:
        wanted = {"first": contrast_anchors, "second": contrast_positives}
        guide = torch.cat((guides["anchors"], guides["positives"]))
        vectors = {"query_guide": guide, "key_guide": guide, "ceiling": of_both(ceiling)}
        where = (one_way(len(like), like.device, **wanted),)
        sets = over_both_sides(*pair, where, normalize=normalize, vectors=vectors, **options)
        sets = sets if contrast_positives else sets[:1]
    else:
        sets = [_of_anchors(pair, guides, "positives", ceiling, normalize, options)]
    if "negatives" in rows:
        further = rows["negatives"]
        sets.append(_of_anchors(pair, guides, "negatives", ceiling, normalize, options, further))
    return total(joint(sets), reduction)


class GISTLoss(LossModule):
    """``gist`` as a module: ``loss(anchors, positives, guide_anchors, guide_positives,
    negatives=None, guide_negatives=None, *, guide_scores=None)``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = gist
    inputs = (
        "anchors",
        "positives",
        "guide_anchors",
        "guide_positives",
        "negatives",
        "guide_negatives",
    )
    options = ("guide_scores",)


def _guides(
    guides: dict[str, Tensor], rows: dict[str, Tensor], normalize: bool
) -> dict[str, Tensor]:
    """The guide's rows, checked, in the accumulation type."""
    for name, guide in guides.items():
        check_embeddings(f"guide_{name}", guide, streamed=False)
        check_same_rows(f"guide_{name}", guide, name, rows[name])
        check_matches(f"guide_{name}", guide, "guide_anchors", guides["anchors"])
        if guide.device != rows[name].device:
            raise ValueError(
                f"guide_{name}: expected the device of {name}, {rows[name].device}, "
                f"got {guide.device}"
            )
    dtype = accumulator(rows["anchors"])
    return {
        name: float_rows(guide.detach().to(dtype), normalize=normalize)
        for name, guide in guides.items()
    }


def _ceiling(
    guides: dict[str, Tensor],
    scores: Tensor | None,
    strategy: str,
    margin: float | Tensor,
    like: Tensor,
) -> Tensor:
    """Up to which of the guide's similarities a row's pairs are kept, [B]."""
    margin = as_scalar("margin", margin, like)
    name = "guide_anchors" if scores is None else "guide_scores"
    if scores is None:
        scores = pair_logits(guides["anchors"], guides["positives"])
    else:
        if not isinstance(scores, Tensor) or scores.dim() != 1:
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"guide_scores: expected a tensor of shape [{len(like)}], got {got}")
        scores = as_vector("guide_scores", scores, like, len(like), "anchors")
    of_margin = scores.abs() if strategy == "relative" else 1
    ceiling = as_bound(name, (scores - margin * of_margin).detach(), like)
    assert ceiling is not None
    return ceiling


def _of_anchors(
    pair: tuple[Tensor, Tensor, float | Tensor],
    guides: dict[str, Tensor],
    keys: str,
    ceiling: Tensor,
    normalize: bool,
    options: dict[str, Any],
    further: Tensor | None = None,
) -> Tensor:
    """Log-sum-exp of each anchor over the positives of others, or over the negatives, less the
    logit of its positive, [B]."""
    vectors = {
        "query_guide": guides["anchors"],
        "key_guide": guides[keys],
        "ceiling": ceiling,
    }
    recipe = Recipe("row_logsumexp", "difference", normalize, in_batch=further is None)
    return contrast(recipe, *pair, (), further, reduction="none", vectors=vectors, **options)
