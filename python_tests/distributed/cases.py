"""Losses as each rank calls them with its rows, and as one process does with all."""

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch

import cl_kernels as cl
from cl_kernels import PairFilter

WIDTH, QUEUE, CLASSES = 12, 9, 6
MEAN, ALL = ("mean",), ("mean", "sum", "none")


class Data(NamedTuple):
    """All rows, or those of a rank.

    Args:
        sizes: Rows of each rank.
        first, second: What is trained, [N, D].
        others: The same rows of other embeddings, [N, 3, D].
        labels: int64 [N], in [0, 4).
        numbers: [N], in [0, 1).
        queue: [K, D], every rank's.
        weight: Trained, [C, D], every rank's.
        scale: Trained, 0-d.
    """

    sizes: list[int]
    first: torch.Tensor
    second: torch.Tensor
    others: torch.Tensor
    labels: torch.Tensor
    numbers: torch.Tensor
    queue: torch.Tensor
    weight: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def random(cls, sizes, dtype=torch.float64):
        generator = torch.Generator().manual_seed(len(sizes))
        N = sum(sizes)

        def rows(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        first = rows(N, WIDTH)
        return cls(
            list(sizes), first, first + rows(N, WIDTH), rows(N, 3, WIDTH),
            torch.randint(4, (N,), generator=generator),
            torch.rand(N, generator=generator, dtype=torch.float64),
            rows(QUEUE, WIDTH), rows(CLASSES, WIDTH), torch.tensor(3.0, dtype=torch.float64),
        )  # fmt: skip

    @property
    def trained(self):
        return self.first, self.second, self.weight, self.scale

    def rows_of(self, rank):
        start = sum(self.sizes[:rank])
        return slice(start, start + self.sizes[rank])

    def of(self, rank):
        """A rank's, with leaves of its own."""
        part = self.rows_of(rank)
        names = "first", "second", "others", "labels", "numbers"
        return self._replace(
            sizes=[self.sizes[rank]], **{n: getattr(self, n)[part] for n in names}
        ).with_leaves()

    def with_leaves(self):
        names = "first", "second", "weight", "scale"
        leaves = {n: getattr(self, n).detach().clone().requires_grad_() for n in names}
        return self._replace(**leaves)

    @property
    def places(self):
        """Where each rank's rows begin, and how many they are."""
        return list(zip(accumulate([0, *self.sizes[:-1]]), self.sizes, strict=True))


class Case(NamedTuple):
    """
    Args:
        call: ``call(data, **options)``.
        reductions: Which it has.
        rows: How many losses a row has: "one", "views" (those of the first view first), "beside"
            (all of a row together) or "pairs" of lists.
        apart: Whether it uses no rows of others, so that no rank may be empty... of the batch.
    """

    call: Callable[..., torch.Tensor]
    reductions: tuple[str, ...] = ALL
    rows: str = "one"


def _labels(x):
    return PairFilter(x.labels, x.labels, "different")


def _of_both_views(x):
    ids = torch.cat((x.labels, x.labels))
    return PairFilter(ids, ids, "different")


def _of_queue(x, views=1):
    ids = torch.arange(QUEUE) % 4
    return PairFilter(x.labels.repeat(views), ids, "different")


def _other_row(x):
    """Of each row another of the same rank."""
    return torch.cat([first + torch.arange(count).flip(0) for first, count in x.places])


def _lists(x):
    """Of each row the first two of its rank; of the first none."""
    return [
        [first, first + 1][: max(count, 1)] if row else []
        for first, count in x.places
        for row in range(count)
    ]


def _beside(*embeddings):
    return torch.stack(embeddings, 1)


def _nt_xent(x, **options):
    return cl.nt_xent(x.first, x.second, 1 / x.scale, **options)


def _info_nce(x, *negatives, **options):
    return cl.info_nce(x.first, x.second, *negatives, temperature=1 / x.scale, **options)


def _clip(x, **options):
    return cl.clip(x.first, x.second, x.scale, normalize=True, **options)


def _siglip(x, **options):
    return cl.siglip(x.first, x.second, x.scale, -x.scale, normalize=True, **options)


def _mnrl(x, candidates, **options):
    return cl.multiple_negatives_ranking(x.first, candidates, scale=x.scale, **options)


_FOUR = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")

CASES = {
    "nt_xent": Case(_nt_xent, rows="views"),
    "nt_xent, where": Case(
        lambda x, **o: _nt_xent(x, where=_of_both_views(x), **o), rows="views"
    ),
    "nt_xent, queue": Case(
        lambda x, **o: _nt_xent(x, negative_keys=x.queue, **o), rows="views"
    ),
    "nt_xent, filtered queue": Case(
        lambda x, **o: _nt_xent(
            x, negative_keys=x.queue, negative_where=_of_queue(x, 2), **o
        ),
        rows="views",
    ),
    "nt_xent, three views": Case(
        lambda x, **o: cl.nt_xent(
            _beside(x.first, x.second, x.others[:, 0]), temperature=1 / x.scale, **o
        ),
        rows="beside",
    ),
    "info_nce": Case(_info_nce),
    "info_nce, frozen keys": Case(
        lambda x, **o: _info_nce(x._replace(second=x.second.detach()), **o)
    ),
    "info_nce, queue": Case(lambda x, **o: _info_nce(x, x.queue, **o)),
    "info_nce, batch and queue": Case(
        lambda x, **o: _info_nce(x, x.queue, in_batch_negatives=True, where=_labels(x), **o),
    ),
    "info_nce, batch and filtered queue": Case(
        lambda x, **o: _info_nce(
            x, x.queue, in_batch_negatives=True, negative_where=_of_queue(x), **o
        )
    ),
    "info_nce, own negatives": Case(
        lambda x, **o: _info_nce(x, x.others, in_batch_negatives=True, **o)
    ),
    "info_nce, own negatives alone": Case(lambda x, **o: _info_nce(x, x.others, **o)),
    "info_nce, key_bias and weights": Case(
        lambda x, **o: _info_nce(x, key_bias=x.numbers, weights=1 + x.numbers, **o)
    ),
    "info_nce, smoothing": Case(lambda x, **o: _info_nce(x, label_smoothing=0.1, **o)),
    "info_nce, hardest": Case(lambda x, **o: _info_nce(x, hardest=2, **o)),
    "info_nce, more than there are hardest": Case(
        lambda x, **o: _info_nce(x, hardest=10**6, where=_labels(x), **o), MEAN
    ),
    "info_nce, mask of positives": Case(
        lambda x, **o: _info_nce(x, target=_mask_of_others(x), **o), MEAN
    ),
    "info_nce, target": Case(lambda x, **o: _info_nce(x, target=_other_row(x), **o)),
    "info_nce, lists": Case(lambda x, **o: _info_nce(x, target=_lists(x), **o)),
    "info_nce, pairs of lists": Case(
        lambda x, **o: _info_nce(x, target=_lists(x), positives="pairs", **o), rows="pairs"
    ),
    "info_nce, lists that overlap": Case(
        lambda x, **o: _info_nce(x, target=_overlapping_lists(x), key_bias=x.numbers, **o)
    ),
    "info_nce, target and key_bias": Case(
        lambda x, **o: _info_nce(
            x, x.queue, in_batch_negatives=True, target=_other_row(x), key_bias=x.numbers, **o
        )
    ),
    "clip": Case(_clip),
    "clip, where and weights": Case(
        lambda x, **o: _clip(x, where=_labels(x), weights=1 + x.numbers, **o)
    ),
    "clip, captions": Case(
        lambda x, **o: cl.clip(x.first, _beside(x.second, x.others[:, 0]), x.scale, **o)
    ),
    "clip, target": Case(lambda x, **o: _clip(x, target=_other_row(x), **o)),
    "clip, smoothing": Case(lambda x, **o: _clip(x, label_smoothing=0.1, **o)),
    "siglip": Case(_siglip),
    "siglip, ids": Case(lambda x, **o: _siglip(x, ids=x.labels, **o)),
    "siglip, ids of both": Case(lambda x, **o: _siglip(x, ids=(x.labels, x.labels + 1), **o)),
    "supcon": Case(lambda x, **o: cl.supcon(x.first, x.labels, temperature=1 / x.scale, **o)),
    "supcon, keys": Case(
        lambda x, **o: cl.supcon(
            x.first, x.labels, x.queue, torch.arange(QUEUE) % 4, temperature=1 / x.scale, **o
        )
    ),
    "supcon, views": Case(
        lambda x, **o: cl.supcon(
            _beside(x.first, x.second), x.labels, positives="inside", temperature=1 / x.scale, **o
        ),
        rows="beside",
    ),
    "supcon, images are classes": Case(
        lambda x, **o: cl.supcon(_beside(x.first, x.second), temperature=1 / x.scale, **o),
        rows="beside",
    ),
    "supcon, images and keys": Case(
        lambda x, **o: cl.supcon(
            _beside(x.first, x.second), None, x.queue, torch.arange(QUEUE),
            temperature=1 / x.scale, in_batch=True, **o,
        ),
        rows="beside",
    ),
    "supcon, lists": Case(
        lambda x, **o: cl.supcon(x.first, _other_lists(x), temperature=1 / x.scale, **o)
    ),
    "decoupled": Case(
        lambda x, **o: cl.decoupled(x.first, x.second, 1 / x.scale, **o), rows="views"
    ),
    "weighted_decoupled": Case(
        lambda x, **o: cl.weighted_decoupled(x.first, x.second, 1 / x.scale, **o), rows="views"
    ),
    "decoupled, each view": Case(
        lambda x, **o: cl.decoupled(x.first, x.second, 1 / x.scale, partition="per_view", **o),
        MEAN,
        rows="views",
    ),
    "hard_negative": Case(
        lambda x, **o: cl.hard_negative(x.first, x.second, 1 / x.scale, **o), rows="views"
    ),
    "multiple_negatives_ranking": Case(
        lambda x, **o: _mnrl(x, [x.second, x.others[:, 0]], ids=x.labels, **o)
    ),
    "multiple_negatives_ranking, four directions": Case(
        lambda x, **o: _mnrl(x, torch.stack((x.second, x.others[:, 0])), directions=_FOUR, **o)
    ),
    "multiple_negatives_ranking, hardness": Case(
        lambda x, **o: _mnrl(
            x, [x.second, x.others[:, 0]], hardness_mode="all_negatives", hardness_strength=2.0, **o
        )
    ),
    "multiple_negatives_ranking, both ways": Case(
        lambda x, **o: _mnrl(
            x, x.second, directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction", **o,
        )
    ),
    "gist": Case(
        lambda x, **o: cl.gist(
            x.first, x.second, x.others[:, 0], x.others[:, 1], temperature=1 / x.scale, **o
        )
    ),
    "gist, negatives": Case(
        lambda x, **o: cl.gist(
            x.first, x.second, x.others[:, 0], x.others[:, 1], x.others[:, 1], x.others[:, 2],
            temperature=1 / x.scale, **o,
        )
    ),
    "qwen3_embedding": Case(
        lambda x, **o: cl.qwen3_embedding(
            x.first, x.second, x.others, temperature=1 / x.scale, ids=x.labels, **o
        )
    ),
    "margin_softmax": Case(
        lambda x, **o: cl.margin_softmax(x.first, x.labels, x.weight, scale=8, m1=1.1, m3=0.1, **o)
    ),
    "arcface": Case(lambda x, **o: cl.arcface(x.first, x.labels, x.weight, scale=8, **o)),
    "cosface": Case(lambda x, **o: cl.cosface(x.first, x.labels, x.weight, scale=8, **o)),
    "normalized_softmax": Case(
        lambda x, **o: cl.normalized_softmax(x.first, x.labels, x.weight, **o)
    ),
    "triplet": Case(lambda x, **o: cl.triplet(x.first, x.labels, **o)),
    "triplet, soft": Case(
        lambda x, **o: cl.triplet(x.first, x.labels, soft=True, distance="squared_euclidean", **o)
    ),
    "triplet, euclidean": Case(
        lambda x, **o: cl.triplet(
            x.first, x.labels, distance="euclidean", average="all", normalize=False, **o
        ),
        MEAN,
    ),
    "triplet, batch_hard": Case(
        lambda x, **o: cl.triplet(x.first, x.labels, mining="batch_hard", **o)
    ),
    "triplet, semi_hard": Case(
        lambda x, **o: cl.triplet(
            x.first, x.labels, mining="semi_hard", distance="euclidean", normalize=False, **o
        )
    ),
    "multi_similarity": Case(
        lambda x, **o: cl.multi_similarity(x.first, x.labels, mining_margin=0.1, **o)
    ),
    "mega_batch_margin": Case(lambda x, **o: cl.mega_batch_margin(x.first, x.second, **o)),
    "pairwise_contrastive": Case(
        lambda x, **o: cl.pairwise_contrastive(x.first, x.labels, **o), ()
    ),
    "proxy_anchor": Case(lambda x, **o: cl.proxy_anchor(x.first, x.labels, x.weight, **o), ()),
    "cosent": Case(lambda x, **o: cl.cosent(x.first, x.second, x.numbers, **o), ()),
    "angle": Case(lambda x, **o: cl.angle(x.first, x.second, x.numbers, **o), ()),
    "distill": Case(
        lambda x, **o: cl.distill(
            x.first, x.second, x.others[:, 0], x.others[:, 1], temperature=0.3, **o
        )
    ),
    "distill, symmetric": Case(
        lambda x, **o: cl.distill(
            x.first, x.second, x.others[:, 0], x.others[:, 1],
            temperature=1 / x.scale, symmetric=True, divergence="cross_entropy", **o,
        )
    ),
    "margin_mse": Case(
        lambda x, **o: cl.margin_mse(
            x.first, x.second, x.others, x.numbers[:, None].expand(-1, 3), **o
        )
    ),
    "vicreg": Case(lambda x, **o: cl.vicreg(x.first, x.second, **o), ()),
    "barlow_twins": Case(lambda x, **o: cl.barlow_twins(x.first, x.second, **o), ()),
    "negative_cosine": Case(lambda x, **o: cl.negative_cosine(x.first, x.second, **o)),
}  # fmt: skip


def _other_lists(x):
    """Of each row one or two others of its rank, as a padded tensor."""
    rows = [
        ([first + (row + 1) % count, first + (row + 2) % count] if count > 2 else [-1, -1])
        for first, count in x.places
        for row in range(count)
    ]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 2)


def _overlapping_lists(x):
    """Of each row itself and the next of its rank."""
    return [
        [first + row, first + (row + 1) % count] if count > 1 else [first + row]
        for first, count in x.places
        for row in range(count)
    ]


def _mask_of_others(x):
    """Of each row all of its rank of the same label, and the row itself."""
    ranks = torch.arange(len(x.sizes)).repeat_interleave(torch.tensor(x.sizes))
    return (x.labels[:, None] == x.labels) & (ranks[:, None] == ranks)
