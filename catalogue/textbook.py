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
    where=(),
    reduction="mean",
):
    q, p = rows(query, normalize), rows(positive_key, normalize)
    B, N = len(q), len(p)
    target = torch.arange(B) if target is None else target
    if in_batch_negatives is None:
        in_batch_negatives = negative_keys is None
    columns = [(q * p[target]).sum(1, keepdim=True) / temperature]  # the positive comes first
    if in_batch_negatives:
        others = kept(where, B, N)
        others[torch.arange(B), target] = False
        columns.append((q @ p.T / temperature).masked_fill(~others, -torch.inf))
        where = ()
    if negative_keys is not None:
        n = rows(negative_keys, normalize)
        logits = (torch.einsum("bd,bkd->bk", q, n) if n.dim() == 3 else q @ n.T) / temperature
        columns.append(logits.masked_fill(~kept(where, B, logits.shape[1]), -torch.inf))
    first = torch.zeros(B, dtype=torch.int64)
    return F.cross_entropy(torch.cat(columns, 1), first, reduction=reduction)


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
