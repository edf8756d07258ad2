"""The textbook forms: dense logits, ``torch.logsumexp``, ``F.cross_entropy`` and autograd.

Nothing here knows how cl_kernels computes; tests hand in float64 copies of the rounded inputs. The
same forms in bfloat16 or float16 are what eager PyTorch does in that dtype.
"""

import torch
import torch.nn.functional as F


def kept(where, M, N):
    """[M, N] booleans: the pairs that every filter keeps."""
    keep = torch.ones(M, N, dtype=torch.bool)
    for f in where if isinstance(where, (list, tuple)) else [where]:
        same = f.query_ids[:, None] == f.key_ids[None, :]
        keep &= same if f.keep == "same" else ~same
    return keep


def statistics(primitive, query, key, scale, where=()):
    """The primitive's results and the logits they are made of."""
    key = query if primitive == "self_logsumexp" else key
    logits = scale * (query @ key.T)
    masked = logits.masked_fill(~kept(where, len(query), len(key)), -torch.inf)
    dims = (1, 0) if primitive == "row_col_logsumexp" else (1,)
    return tuple(masked.logsumexp(dim) for dim in dims), logits


def rows(x, normalize):
    return F.normalize(x, dim=-1) if normalize else x


def nt_xent(
    view_0, view_1, temperature, *, normalize=True, negative_keys=None, where=(), reduction="mean"
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
        logits = torch.cat([logits, z @ rows(negative_keys, normalize).T / temperature], 1)
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


def clip(
    image_features,
    text_features,
    logit_scale,
    logit_bias=None,
    *,
    normalize=False,
    reduction="mean",
):
    images, texts = rows(image_features, normalize), rows(text_features, normalize)
    logits = logit_scale * images @ texts.T
    if logit_bias is not None:
        logits = logits + logit_bias
    pair = torch.arange(len(images))
    of_images = F.cross_entropy(logits, pair, reduction=reduction)
    of_texts = F.cross_entropy(logits.T, pair, reduction=reduction)
    return (of_images + of_texts) / 2
