"""Retrieval metrics by their definitions, averaged over every order of equal scores."""

import itertools

import numpy as np
import torch

NAMES = ("recall", "hit", "mrr", "ndcg", "map")


def orders(scores, relevant):
    """Whether the key at each rank is relevant, for every equally likely order of equal scores."""
    groups = []
    for score in sorted(set(scores), reverse=True):
        hits = [r for s, r in zip(scores, relevant, strict=True) if s == score]
        places = itertools.combinations(range(len(hits)), sum(hits))
        groups.append([[i in chosen for i in range(len(hits))] for chosen in places])
    for order in itertools.product(*groups):
        yield [hit for group in order for hit in group]


def average_precision(hits, possible):
    found, precision = 0, 0.0
    for rank, hit in enumerate(hits, 1):
        found += hit
        precision += hit * found / rank
    return precision / possible


def textbook_of_one(hits, at):
    """Every metric of one ranking, rank by rank."""
    total = sum(hits)
    results = {}
    for k in at:
        top = hits[:k]
        ideal = sum(1 / np.log2(1 + rank) for rank in range(1, min(total, k) + 1))
        gain = sum(1 / np.log2(1 + rank) for rank, hit in enumerate(top, 1) if hit)
        values = {
            "recall": sum(top) / total,
            "hit": float(any(top)),
            "mrr": 1 / (top.index(True) + 1) if any(top) else 0.0,
            "ndcg": gain / ideal,
            "map": average_precision(top, min(total, k)),
        }
        results |= {f"{name}@{k}": value for name, value in values.items()}
    return results | {"map": average_precision(hits, total)}


def textbook(scores, relevant, at, excluded=None):
    """Every metric of every query from masks [M, N], averaged over the orders of equal scores."""
    names = [f"{name}@{k}" for k in at for name in NAMES] + ["map"]
    results = torch.full((len(names), len(scores)), torch.nan, dtype=torch.float64)
    for i, row in enumerate(scores.double()):
        left = torch.ones(len(row), dtype=torch.bool) if excluded is None else ~excluded[i]
        hits = relevant[i, left].tolist()
        if any(hits):
            each = [textbook_of_one(order, at) for order in orders(row[left].tolist(), hits)]
            results[:, i] = torch.tensor([np.mean([x[name] for x in each]) for name in names])
    return dict(zip(names, results, strict=True))
