"""Losses of queries and documents, and their textbook forms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import cl_kernels
from catalogue.family.case import Arguments, FamilyCase, plain
from catalogue.family.views import reduced
from catalogue.textbook import rows


def multiple_negatives_ranking(
    anchors: Tensor,
    candidates: Tensor,
    *,
    scale=20.0,
    directions=("query_to_doc",),
    partition_mode="joint",
    hardness_mode=None,
    hardness_strength=0.0,
    ids=None,
    normalize=True,
    reduction="mean",
):
    candidates = candidates.reshape(-1, *anchors.shape)
    queries, docs = rows(anchors, normalize), [rows(x, normalize) for x in candidates]
    ids = torch.arange(len(queries)) if ids is None else ids
    own, same = torch.eye(len(queries), dtype=torch.bool), ids[:, None] == ids
    never = torch.zeros_like(own)
    positive = (queries * docs[0]).sum(1)
    logits = {name: [] for name in directions}
    for column, doc in enumerate(docs):
        similarity = queries @ doc.T
        weighted = {
            None: never,
            "in_batch_negatives": ~own,
            "hard_negatives": own if column else never,
            "all_negatives": ~own | (own if column else never),
        }[hardness_mode]
        hardness = hardness_strength * torch.where(weighted, similarity.detach(), 0)
        logits["query_to_doc"].append((scale * similarity + hardness, same & ~own))
        if "doc_to_doc" in directions:
            logits["doc_to_doc"].append((scale * docs[0] @ doc.T, same))
    if "query_to_query" in directions:
        logits["query_to_query"].append((scale * queries @ queries.T, same))
    if "doc_to_query" in directions:
        logits["doc_to_query"].append((scale * docs[0] @ queries.T, same & ~own))
    each = [
        torch.cat([x.masked_fill(dropped, -torch.inf) for x, dropped in logits[name]], 1)
        for name in directions
    ]
    if partition_mode == "joint":
        each = [torch.cat(each, 1)]
    losses = torch.stack([x.logsumexp(1) - scale * positive for x in each]).mean(0)
    return reduced(losses, reduction)


def pairs(B: int, D: int) -> Arguments:
    queries = torch.randn(B, D)
    return {"anchors": queries, "candidates": queries + torch.randn(B, D)}


def _hard(B: int, D: int) -> Arguments:
    """Documents, the second and third columns of which are near the anchors too."""
    queries = torch.randn(B, D)
    return {"anchors": queries, "candidates": queries + torch.randn(3, B, D)}


_SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query")}
_EVERYTHING = {
    "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
}


def _duplicates(B: int, D: int) -> Arguments:
    return {"ids": torch.arange(B) % (B - B // 4)}


def gist(
    anchors: Tensor,
    positives: Tensor,
    guide_anchors: Tensor,
    guide_positives: Tensor,
    negatives=None,
    guide_negatives=None,
    *,
    temperature=0.01,
    margin_strategy="absolute",
    margin=0.0,
    contrast_anchors=True,
    contrast_positives=True,
    guide_scores=None,
    normalize=True,
    reduction="mean",
):
    given = {"a": (anchors, guide_anchors), "p": (positives, guide_positives)}
    if negatives is not None and guide_negatives is not None:
        given["n"] = negatives, guide_negatives
    x = {name: rows(of_model, normalize) for name, (of_model, _) in given.items()}
    g = {name: rows(of_guide.detach(), normalize) for name, (_, of_guide) in given.items()}
    me = torch.eye(len(anchors), dtype=torch.bool)
    score = (g["a"] @ g["p"].T).diagonal() if guide_scores is None else guide_scores.detach()
    ceiling = score - margin * (score.abs() if margin_strategy == "relative" else 1)
    terms = [("a", "p"), *([("a", "n")] if "n" in x else [])]
    terms += [("a", "a")] * contrast_anchors + [("p", "p")] * contrast_positives
    scores = []
    for mine, other in terms:
        dropped = g[mine] @ g[other].T > ceiling[:, None]
        if (mine, other) == ("a", "p"):
            dropped = dropped & ~me
        elif mine == other:
            dropped = dropped | me
        scores.append((x[mine] @ x[other].T / temperature).masked_fill(dropped, -torch.inf))
    losses = F.cross_entropy(torch.cat(scores, 1), torch.arange(len(anchors)), reduction="none")
    return reduced(losses, reduction)


def qwen3_embedding(
    query: Tensor,
    positive: Tensor,
    negatives=None,
    *,
    temperature=0.01,
    margin=0.1,
    mask_negatives=False,
    ids=None,
    normalize=True,
    reduction="mean",
):
    q, d = rows(query, normalize), rows(positive, normalize)
    ids = torch.arange(len(q)) if ids is None else ids
    same = ids[:, None] == ids
    of_positive = (q * d).sum(1, keepdim=True)
    bound = torch.inf if margin is None else of_positive.detach() + margin
    scores = [of_positive / temperature]
    for similarity in (q @ d.T, q @ q.T, d @ d.T):
        dropped = same | (similarity >= bound)
        scores.append((similarity / temperature).masked_fill(dropped, -torch.inf))
    if negatives is not None:
        similarity = (q[:, None] * rows(negatives, normalize)).sum(-1)
        dropped = similarity >= (bound if mask_negatives else torch.inf)
        scores.append((similarity / temperature).masked_fill(dropped, -torch.inf))
    first = torch.zeros(len(q), dtype=torch.long)
    losses = F.cross_entropy(torch.cat(scores, 1), first, reduction="none")
    return reduced(losses, reduction)


def guided(B: int, D: int) -> Arguments:
    """A guide that finds some of the anchors near one another."""
    arguments = {"anchors": torch.randn(B, D)}
    arguments["positives"] = arguments["anchors"] + 1.5 * torch.randn(B, D)
    topics = torch.randn(B // 3 + 1, 12)[torch.arange(B) % (B // 3 + 1)]
    arguments["guide_anchors"] = topics + 0.7 * torch.randn(B, 12)
    arguments["guide_positives"] = topics + 0.7 * torch.randn(B, 12)
    return arguments


def _guided_negatives(B: int, D: int) -> Arguments:
    return {"negatives": torch.randn(B + 3, D), "guide_negatives": torch.randn(B + 3, 12)}


def questions(B: int, D: int) -> Arguments:
    """Some questions are near one another, and so are their documents."""
    near = torch.randn(B, D)
    near[1::3] = near[::3][: len(near[1::3])] + 0.3 * torch.randn(len(near[1::3]), D)
    noise = torch.randn(2, B, D)
    return {"query": near + 0.5 * noise[0], "positive": near + 0.8 * noise[1]}


def _own_negatives(B: int, D: int) -> Arguments:
    arguments = questions(B, D)
    noise = torch.rand(B, 5, 1) * torch.randn(B, 5, D)
    return arguments | {"negatives": arguments["query"][:, None] + noise}


CASES = (
    FamilyCase(
        ours=cl_kernels.multiple_negatives_ranking,
        module=cl_kernels.MultipleNegativesRankingLoss,
        textbook=multiple_negatives_ranking,
        inputs=pairs,
        options={
            "plain": plain,
            "hard negatives": _hard,
            "duplicates": _duplicates,
            "hard negatives, duplicates": lambda B, D: _hard(B, D) | _duplicates(B, D),
            "symmetric": lambda B, D: _SYMMETRIC | {"partition_mode": "per_direction"},
            "symmetric, hard negatives": lambda B, D: (
                _hard(B, D) | _SYMMETRIC | {"partition_mode": "per_direction"}
            ),
            "symmetric, joint": lambda B, D: _SYMMETRIC | _duplicates(B, D),
            "all directions": lambda B, D: _EVERYTHING,
            "all directions, hard negatives": lambda B, D: (
                _hard(B, D) | _duplicates(B, D) | _EVERYTHING
            ),
            "all directions, hardness": lambda B, D: (
                _hard(B, D)
                | _EVERYTHING
                | {"hardness_mode": "all_negatives", "hardness_strength": 9.0}
            ),
            "documents apart": lambda B, D: (
                _hard(B, D) | {"directions": ("query_to_doc", "doc_to_doc")}
            ),
            "anchors apart": lambda B, D: {"directions": ("query_to_doc", "query_to_query")},
            "in-batch hardness": lambda B, D: {
                "hardness_mode": "in_batch_negatives",
                "hardness_strength": 9.0,
            },
            "in-batch hardness, hard negatives": lambda B, D: (
                _hard(B, D) | {"hardness_mode": "in_batch_negatives", "hardness_strength": 9.0}
            ),
            "hardness of hard negatives": lambda B, D: (
                _hard(B, D) | {"hardness_mode": "hard_negatives", "hardness_strength": 5.0}
            ),
            "hardness, learned scale": lambda B, D: (
                _hard(B, D)
                | {
                    "hardness_mode": "all_negatives",
                    "hardness_strength": 5.0,
                    "scale": torch.tensor(10.0),
                }
            ),
            "as they come": lambda B, D: {"normalize": False, "scale": 0.03},
        },
        title="Multiple negatives ranking: hard negatives, four directions, hardness weights",
        paper="Henderson et al., Efficient Natural Language Response Suggestion for Smart Reply "
        "(2017), section 4.4",
    ),
    FamilyCase(
        ours=cl_kernels.gist,
        module=cl_kernels.GISTLoss,
        textbook=gist,
        inputs=guided,
        options={
            "plain": plain,
            "negatives": lambda B, D: _guided_negatives(B, D) | {"temperature": 0.05},
            "absolute margin": lambda B, D: {"margin": 0.1, "temperature": 0.05},
            "relative margin": lambda B, D: {
                "margin": 0.3,
                "margin_strategy": "relative",
                "temperature": 0.05,
            },
            "scores of another guide": lambda B, D: {
                "guide_scores": torch.rand(B),
                "temperature": 0.05,
            },
            "anchors against positives": lambda B, D: {
                "contrast_anchors": False,
                "contrast_positives": False,
                "temperature": 0.05,
            },
            "learned temperature": lambda B, D: {"temperature": torch.tensor(0.25)},
            "as they come": lambda B, D: {"normalize": False, "temperature": 40.0},
        },
        title="GISTEmbed: a guide model drops false negatives",
        paper="Solatorio, GISTEmbed: Guided In-sample Selection of Training Negatives for Text "
        "Embedding Fine-tuning (2024), equations 3 to 6",
    ),
    FamilyCase(
        ours=cl_kernels.qwen3_embedding,
        module=cl_kernels.Qwen3EmbeddingLoss,
        textbook=qwen3_embedding,
        inputs=questions,
        options={
            "plain": plain,
            "hard negatives": lambda B, D: _own_negatives(B, D) | {"temperature": 0.05},
            "all masked": lambda B, D: (
                _own_negatives(B, D)
                | {"temperature": 0.05, "mask_negatives": True, "margin": -0.05}
            ),
            "no mask": lambda B, D: {"temperature": 0.05, "margin": None},
            "duplicates": lambda B, D: _duplicates(B, D) | {"temperature": 0.05},
            "learned temperature": lambda B, D: (
                _own_negatives(B, D) | {"temperature": torch.tensor(0.25)}
            ),
            "as they come": lambda B, D: {"normalize": False, "temperature": 40.0, "margin": 3},
        },
        title="Qwen3 Embedding: documents, queries and hard negatives, less false negatives",
        paper="Zhang et al., Qwen3 Embedding: Advancing Text Embedding and Reranking Through "
        "Foundation Models (2025), equation 1",
    ),
)
