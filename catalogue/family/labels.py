"""Losses of labelled rows, and their textbook forms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import cl_kernels
from catalogue.family.case import Arguments, FamilyCase, plain
from catalogue.textbook import mask_of, rows


def labelled(B: int, D: int) -> Arguments:
    """Rows around the centres of their classes; the last class has one row."""
    labels = torch.arange(B) % max(B // 4, 1)
    labels[-1] = B
    return {"x": torch.randn(B, D)[labels % B] + 0.7 * torch.randn(B, D), "labels": labels}


def _mean_of_counted(losses, counted, reduction):
    losses = torch.where(counted, losses, 0)
    if reduction == "none":
        return losses
    return losses.sum() / (max(int(counted.sum()), 1) if reduction == "mean" else 1)


def supcon(
    x: Tensor,
    labels=None,
    keys=None,
    key_labels=None,
    *,
    temperature=0.1,
    base_temperature=None,
    positives="outside",
    in_batch=None,
    normalize=True,
    reduction="mean",
):
    if x.dim() == 3:
        labels = torch.arange(len(x)) if labels is None else labels
        labels, x = labels.repeat_interleave(x.shape[1]), x.flatten(0, 1)
    x = rows(x, normalize)
    similarity, same = [], []
    listed = labels if labels.dim() == 2 else None
    if in_batch or keys is None:
        me = torch.eye(len(x), dtype=torch.bool)
        similarity.append((x @ x.T / temperature).masked_fill(me, -torch.inf))
        same.append(
            (labels[:, None] == labels) & ~me if listed is None else mask_of(labels, len(x))
        )
    if keys is not None:
        similarity.append(x @ rows(keys, normalize).T / temperature)
        by_label = labels[:, None] == key_labels if listed is None else None
        same.append(mask_of(labels, len(keys)) if by_label is None else by_label)
    similarity, same = torch.cat(similarity, 1), torch.cat(same, 1)
    count = same.sum(1)
    log_probability = similarity - similarity.logsumexp(1, keepdim=True)
    if positives == "outside":
        losses = -torch.where(same, log_probability, 0).sum(1) / count.clamp_min(1)
    else:
        mean = torch.where(same, log_probability.exp(), 0).sum(1) / count.clamp_min(1)
        losses = -torch.where(count > 0, mean, 1).log()
    if base_temperature is not None:
        losses = losses * (temperature / base_temperature)
    return _mean_of_counted(losses, count > 0, reduction)


def eager_supcon(x: Tensor, labels: Tensor, *, temperature=0.1) -> Tensor:
    """In the steps of the authors' own implementation, for one view; but that an anchor without a
    positive, for which theirs is NaN, leaves the mean."""
    views = F.normalize(x)[:, None]  # [B, V, D]
    B, V = views.shape[:2]
    same = torch.eq(labels.contiguous().view(-1, 1), labels.contiguous().view(-1, 1).T).float()
    anchors = torch.cat(torch.unbind(views, dim=1), dim=0)
    logits = torch.div(torch.matmul(anchors, anchors.T), temperature)
    logits = logits - torch.max(logits, dim=1, keepdim=True).values.detach()
    same = same.repeat(V, V)
    others = torch.scatter(torch.ones_like(same), 1, torch.arange(B * V).view(-1, 1), 0)
    same = same * others
    exponentials = torch.exp(logits) * others
    log_probability = logits - torch.log(exponentials.sum(1, keepdim=True))
    counts = same.sum(1)
    mean = (same * log_probability).sum(1) / torch.where(counts < 1e-6, 1, counts)
    losses = (-(temperature / temperature) * mean).view(V, B)
    return losses.sum() / (counts > 0).sum().clamp_min(1)


def _queue(B: int, D: int) -> Arguments:
    return {"keys": torch.randn(3 * B, D), "key_labels": torch.arange(3 * B) % (B // 2)}


def _lists(B: int, N: int) -> Tensor:
    """Up to three of others; some have none."""
    lists = (torch.arange(B)[:, None] + torch.tensor([1, 5, 11])) % N
    lists[::3, 1:] = -1
    lists[::7] = -1
    return lists


CASES = (
    FamilyCase(
        ours=cl_kernels.supcon,
        module=cl_kernels.SupConLoss,
        textbook=supcon,
        inputs=labelled,
        options={
            "plain": plain,
            "inside": lambda B, D: {"positives": "inside"},
            "learned temperature": lambda B, D: {"temperature": torch.tensor(0.25)},
            "base temperature": lambda B, D: {"temperature": 0.5, "base_temperature": 0.07},
            "views": lambda B, D: {"x": torch.randn(B, 3, D), "labels": None},
            "labelled views": lambda B, D: {"x": torch.randn(B, 2, D)},
            "reference": _queue,
            "queue": lambda B, D: _queue(B, D) | {"in_batch": True},
            "queue, inside": lambda B, D: _queue(B, D) | {"in_batch": True, "positives": "inside"},
            "lists": lambda B, D: {"labels": _lists(B, B)},
            "lists, inside": lambda B, D: {"labels": _lists(B, B), "positives": "inside"},
            "lists of keys": lambda B, D: {
                "labels": _lists(B, 3 * B),
                "keys": torch.randn(3 * B, D),
            },
            "lists of keys, inside": lambda B, D: {
                "labels": _lists(B, 3 * B),
                "keys": torch.randn(3 * B, D),
                "positives": "inside",
            },
            "as they come": lambda B, D: {"normalize": False, "temperature": 40.0},
        },
        title="SupCon: labels, several views, reference sets and queues",
        eager=eager_supcon,
        paper="Khosla et al., Supervised Contrastive Learning (2020), equations 2 and 3",
    ),
)
