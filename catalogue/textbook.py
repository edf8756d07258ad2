"""The textbook forms: dense logits, ``torch.logsumexp``, ``F.cross_entropy`` and autograd.

Nothing here knows how cl_kernels computes; tests hand in float64 copies of the rounded inputs. The
same forms in bfloat16 or float16 are what eager PyTorch does in that dtype.
"""

import torch
import torch.nn.functional as F

from catalogue.folds import FOLDS


def kept(where, M, N):
    """[M, N] booleans: the pairs that every filter keeps."""
    keep = torch.ones(M, N, dtype=torch.bool)
    for f in where if isinstance(where, (list, tuple)) else [where]:
        same = f.query_ids[:, None] == f.key_ids[None, :]
        keep &= same if f.keep == "same" else ~same
    return keep


def statistics(
    primitive,
    query,
    key,
    scale,
    where=(),
    *,
    below=None,
    above=None,
    query_bias=None,
    key_bias=None,
    guide=None,
    normalize=False,
):
    """The primitive's results and the logits they are made of."""
    sides, fold = primitive.split("_", 1) if "_col_" not in primitive else primitive.split("_col_")
    query, key = rows(query, normalize), rows(query if sides == "self" else key, normalize)
    similarity = query @ key.T
    keep = kept(where, len(query), len(key))
    if below is not None:
        keep &= similarity < below[:, None]
    if above is not None:
        keep &= similarity > above[:, None]
    if guide is not None:
        of_query, of_key, ceiling = guide
        keep &= of_query @ of_key.T <= ceiling[:, None]
    logits = scale * similarity
    if query_bias is not None:
        logits = logits + query_bias[:, None]
    if key_bias is not None:
        logits = logits + key_bias
    masked = logits.masked_fill(~keep, -torch.inf)
    dims = (1, 0) if "_col_" in primitive else (1,)
    return tuple(x for dim in dims for x in FOLDS[fold].textbook(masked, dim)), logits


def rows(x, normalize):
    return F.normalize(x, dim=-1) if normalize else x


def nt_xent(
    view_0,
    view_1,
    temperature,
    *,
    normalize=True,
    negative_keys=None,
    where=(),
    negative_where=(),
    reduction="mean",
):
    z = rows(torch.cat([view_0, view_1]), normalize)
    R, B = len(z), len(view_0)
    me = torch.arange(R)
    positive = (me + B) % R
    allowed = kept(where, R, R)
    allowed[me, positive] = True  # a positive always counts
    allowed[me, me] = False
    logits = (z @ z.T / temperature).masked_fill(~allowed, -torch.inf)
    if negative_keys is not None:
        further = z @ rows(negative_keys, normalize).T / temperature
        keep = kept(negative_where, *further.shape)
        logits = torch.cat([logits, further.masked_fill(~keep, -torch.inf)], 1)
    return F.cross_entropy(logits, positive, reduction=reduction)


def info_nce(
    query,
    positive_key,
    negative_keys=None,
    *,
    temperature=0.1,
    normalize=True,
    in_batch_negatives=None,
    target=None,
    positives="outside",
    where=(),
    negative_where=(),
    key_bias=None,
    weights=None,
    label_smoothing=0.0,
    reduction="mean",
):
    q, p = rows(query, normalize), rows(positive_key, normalize)
    B, N = len(q), len(p)
    if in_batch_negatives is None:
        in_batch_negatives = negative_keys is None
    if not in_batch_negatives:
        where, negative_where = (), where or negative_where
    logits = q @ p.T / temperature
    logits = logits if key_bias is None else logits + key_bias
    positive = mask_of(torch.arange(B) if target is None else target, N)
    others = kept(where, B, N) & ~positive & in_batch_negatives
    negatives = [logits.masked_fill(~others, -torch.inf)]
    if negative_keys is not None:
        n = rows(negative_keys, normalize)
        further = (torch.einsum("bd,bkd->bk", q, n) if n.dim() == 3 else q @ n.T) / temperature
        further = further.masked_fill(~kept(negative_where, B, further.shape[1]), -torch.inf)
        negatives.append(further)
    negatives = torch.cat(negatives, 1)
    if target is None or target.dim() == 1:
        own = logits[positive][:, None]
        first = torch.zeros(B, dtype=torch.int64)
        keys = torch.cat([own, negatives], 1)
        losses = F.cross_entropy(keys, first, reduction="none")
        # Over the keys that there are; a filter leaves none of them out.
        mean = torch.where(keys == -torch.inf, 0, keys).sum(1) / (keys > -torch.inf).sum(1)
        return weighted(losses + label_smoothing * (own[:, 0] - mean), weights, reduction)
    return several(logits, positive, negatives, positives, weights, reduction)


def mask_of(target, count):
    """[B, N] booleans of indices, [B] or [B, P] padded with -1."""
    target = target.long().view(len(target), -1)
    return (target[:, :, None] == torch.arange(count)).any(1)


def several(logits, positive, negatives, positives, weights, reduction):
    weights = torch.ones_like(logits[:, 0]) if weights is None else weights
    counts = positive.sum(1)
    if positives == "inside":
        own = logits.masked_fill(~positive, -torch.inf)
        every = torch.cat([own, negatives], 1)
        losses = every.logsumexp(1) - torch.where((counts > 0)[:, None], own, 0).logsumexp(1)
        losses = torch.where(counts > 0, losses, 0)
    else:
        every = torch.cat(
            [negatives[:, None].expand(-1, logits.shape[1], -1), logits[..., None]], 2
        )
        pairs = torch.where(positive, every.logsumexp(2) - logits, 0)
        if positives == "pairs":
            pairs = pairs[positive]
            return weighted(pairs, weights.repeat_interleave(counts), reduction)
        losses = pairs.sum(1) / counts.clamp_min(1)
    if reduction == "mean":
        return (weights * losses).sum() / (weights * (counts > 0)).sum()
    return weighted(losses, weights, reduction)


def siglip(
    image_features,
    text_features,
    logit_scale,
    logit_bias=None,
    *,
    ids=None,
    normalize=False,
    reduction="mean",
):
    images, texts = rows(image_features, normalize), rows(text_features, normalize)
    logits = logit_scale * images @ texts.T
    if logit_bias is not None:
        logits = logits + logit_bias
    if ids is None:
        ids = torch.arange(len(images))
    of_images, of_texts = ids if isinstance(ids, tuple) else (ids, ids)
    signs = 2 * (of_images[:, None] == of_texts).to(logits.dtype) - 1
    losses = -F.logsigmoid(signs * logits).sum(1)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


def clip(
    image_features,
    text_features,
    logit_scale,
    logit_bias=None,
    *,
    target=None,
    where=(),
    label_smoothing=0.0,
    weights=None,
    normalize=False,
    reduction="mean",
):
    images, texts = rows(image_features, normalize), rows(text_features, normalize)
    logits = logit_scale * images @ texts.T
    if logit_bias is not None:
        logits = logits + logit_bias
    B = len(images)
    target = torch.arange(B) if target is None else target.long()
    positive = target[:, None] == torch.arange(len(texts))
    logits = logits.masked_fill(~(kept(where, *logits.shape) | positive), -torch.inf)
    # A text of two images: neither is the other's negative.
    of_texts = logits.T[target].masked_fill(
        positive.T[target] & ~torch.eye(B, dtype=torch.bool), -torch.inf
    )
    smoothed = {"label_smoothing": label_smoothing, "reduction": "none"}
    losses = F.cross_entropy(logits, target, **smoothed)
    losses = (losses + F.cross_entropy(of_texts, torch.arange(B), **smoothed)) / 2
    return weighted(losses, weights, reduction)


def weighted(losses, weights, reduction):
    weights = torch.ones_like(losses) if weights is None else weights
    if reduction == "none":
        return weights * losses
    return (weights * losses).sum() / (weights.sum() if reduction == "mean" else 1)
