"""CoSENT and AnglE: scored pairs of texts, ranked against each other."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.checks import as_scalar
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import as_inputs, check_same_rows
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.ranks.group import Group
from cl_kernels.reading import readable
from cl_kernels.statistics.rows import float_rows_of


def cosent(
    first: Tensor,
    second: Tensor,
    similarity: Tensor,
    *,
    scale: float | Tensor = 20.0,
    normalize: bool = True,
    group: Group | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Pairs that are more alike by their targets shall have the larger cosine.

    ``log(1 + sum over (i, j) with similarity[i] > similarity[j] of exp(scale (cos_j - cos_i)))``:
    Su, "CoSENT: A more efficient sentence vector scheme than Sentence-BERT" (2022). Pairs of equal
    targets are not compared. The sum is taken over sorted targets: O(B log B).

    Args:
        first: Embeddings of one side, shape [B, D]. float32, float16, bfloat16 or float64.
        second: Row i is the other side of pair i, shape [B, D], same dtype and device.
        similarity: How alike the two sides are, shape [B]: numbers of any range, of which only
            the order counts; booleans for alike or not. No gradient flows to them.
        scale: Inverse temperature: a number, or a 0-d tensor that may require grad.
        normalize: Divide rows by their length first (cosine similarity).
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Returns:
        A 0-d tensor, float32 (float64 for float64 inputs): one loss of the whole batch. Without
        two different targets it is 0 with gradient 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = cosent(model(questions), model(answers), scores)
    """
    if over_several(gather, group):
        return over_ranks(cosent, locals())
    first, second, similarity = _checked(first, second, similarity)
    scale = as_scalar("scale", scale, first)
    first, second = float_rows_of(first, second, normalize=normalize)
    return _ranked(scale * (first * second).sum(1), similarity)


def angle(
    first: Tensor,
    second: Tensor,
    similarity: Tensor,
    *,
    scale: float | Tensor = 20.0,
    normalize: bool = True,
    group: Group | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """``cosent`` of another similarity, whose gradient does not vanish where the cosine's does.

    The halves of a row are the real and imaginary parts of D / 2 complex numbers (a zero is added
    to an odd width), and the similarity of z and w is ``|Re <w, z> + Im <w, z>|``: Li and Li,
    "AnglE-optimized Text Embeddings" (2023), the angle objective, with the order of pairs that its
    authors' code has. The paper adds it to ``cosent`` and an in-batch loss.

    Arguments, results and errors are those of ``cosent``; ``normalize`` divides rows by their
    length first.
    """
    if over_several(gather, group):
        return over_ranks(angle, locals())
    first, second, similarity = _checked(first, second, similarity)
    scale = as_scalar("scale", scale, first)
    first, second = float_rows_of(first, second, normalize=normalize)
    if first.shape[1] % 2:
        first, second = F.pad(first, (0, 1)), F.pad(second, (0, 1))
    real, imaginary = first.chunk(2, 1)
    both = torch.cat((real + imaginary, imaginary - real), 1)  # <both, second> = Re + Im
    return _ranked(scale * (both * second).sum(1).abs(), similarity)


class CoSENTLoss(LossModule):
    """``cosent`` as a module: ``loss(first, second, similarity)``.

    Settings are the function's other arguments; a scale may be an ``nn.Parameter`` (0-d), which is
    learned.
    """

    function = cosent
    inputs = "first", "second", "similarity"


class AnglELoss(LossModule):
    """``angle`` as a module: ``loss(first, second, similarity)``.

    Settings are the function's other arguments; a scale may be an ``nn.Parameter`` (0-d), which is
    learned.
    """

    function = angle
    inputs = "first", "second", "similarity"


def _checked(first: Tensor, second: Tensor, similarity: Tensor) -> tuple[Tensor, ...]:
    first, second = as_inputs(first=first, second=second)
    check_same_rows("second", second, "first", first)
    if not isinstance(similarity, Tensor):
        raise TypeError(f"similarity: expected a tensor, got {type(similarity).__name__}")
    if similarity.is_complex():
        raise TypeError(f"similarity: expected real numbers, got {similarity.dtype}")
    if similarity.shape != first.shape[:1]:
        raise ValueError(
            f"similarity: expected one number for each of the {first.shape[0]} rows of first, "
            f"got shape {list(similarity.shape)}"
        )
    if similarity.device != first.device:
        raise ValueError(
            f"similarity: expected the device of first, {first.device}, got {similarity.device}"
        )
    similarity = similarity.detach()
    return first, second, similarity.byte() if similarity.dtype == torch.bool else similarity


def _ranked(scores: Tensor, similarity: Tensor) -> Tensor:
    """The loss of scores [B]."""
    scores, similarity = map(the_batch().everyone, (scores, similarity))
    ordered, order = similarity.sort()
    # NaN is sorted behind all numbers.
    if readable(ordered) and len(ordered) and math.isnan(ordered[-1].item()):
        raise ValueError("similarity: expected numbers, got a NaN")
    return _ranked_loss(scores, ordered, order)


@in_graph
def _ranked_loss(scores: Tensor, ordered: Tensor, order: Tensor) -> Tensor:
    return differentiable(_Ranked, scores, ordered, order)


class _Ranked(torch.autograd.Function):
    """The loss of scores [B], and rising targets with the order that sorts them.

    The sums of one number over all larger targets and over all smaller ones give the gradient
    too, which autograd would make of the logarithms of its own gradients.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, ordered: Tensor, order: Tensor):
        scores = scores.index_select(0, order)
        nothing = scores.new_full((1,), -torch.inf)
        lower = torch.cat((nothing, scores.logcumsumexp(0)))
        higher = torch.cat((nothing, scores.neg().flip(0).logcumsumexp(0))).flip(0)
        # Of each score: its differences to those of strictly larger targets, and of smaller ones.
        less = scores + higher[torch.searchsorted(ordered, ordered, right=True)]
        more = lower[torch.searchsorted(ordered, ordered)] - scores
        loss = F.softplus(less.logsumexp(0), threshold=40)
        gradient = (less - loss).exp() - (more - loss).exp()
        ctx.save_for_backward(torch.empty_like(scores).index_copy_(0, order, gradient))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None
