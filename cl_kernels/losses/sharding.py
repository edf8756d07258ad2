"""Which arguments of a loss are rows of a batch: what its call over several processes takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


def _never(arguments: Mapping[str, Any]) -> bool:
    return False


def _always(arguments: Mapping[str, Any]) -> bool:
    return True


def _with_target(arguments: Mapping[str, Any]) -> bool:
    return arguments["target"] is not None


def _with_ids_of_both(arguments: Mapping[str, Any]) -> bool:
    return isinstance(arguments["ids"], tuple)


def _without_batch(arguments: Mapping[str, Any]) -> bool:
    """InfoNCE whose negatives are a queue, or each query's own."""
    return arguments["target"] is None and not _in_batch(arguments)


def _in_batch(arguments: Mapping[str, Any]) -> bool:
    given = arguments["in_batch_negatives"]
    if not isinstance(given, bool):  # what is no flag the loss refuses
        return arguments["negative_keys"] is None
    return given


class Sharding(NamedTuple):
    """
    Args:
        rows: Arguments with a row for each sample (or for whatever else each rank has its own of);
            all others are the same on every rank.
        own: Those that are rows of samples if they have three dimensions, else everybody's.
        counting: Of arguments that count rows: which argument's.
        where: Filters on pairs of rows, and on pairs of rows and what is everybody's.
        views: Whether rows that a filter and the losses count are those of both views.
        apart: Whether a row's loss needs no other rank's rows, by the arguments.
        keys: Of the rows those of keys, of which each rank may have another number than of others
            where the call lets it.
        rectangular: Whether it does.
        further_cut: Whether the further keys of a row are cut as well.
        shared_queries: Whether statistics are of queries that every rank has and of keys of which
            each has its own.
        alike: Whether a rank that has its own rows alone finds the loss of all: others their part.
    """

    rows: tuple[str, ...]
    own: tuple[str, ...] = ()
    counting: Mapping[str, str] = {}
    where: tuple[str, ...] = ()
    views: bool = False
    apart: Callable[[Mapping[str, Any]], bool] = _never
    keys: tuple[str, ...] = ()
    rectangular: Callable[[Mapping[str, Any]], bool] = _always
    further_cut: bool = False
    shared_queries: bool = False
    alike: bool = False

    def cuts_keys(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Whether the keys of a filter are rows of samples."""
        if name != "where":
            return False
        return "in_batch_negatives" not in arguments or _in_batch(arguments)


def _of(rows: str, **others: Any) -> Sharding:
    return Sharding(tuple(rows.split()), **others)


_VIEWS = "view_0 view_1"
_CLASSES = _of("x target", apart=_always)

SHARDINGS: dict[str, Sharding] = {
    "angle": _of("first second similarity", alike=True),
    "arcface": _CLASSES,
    "barlow_twins": _of("first second", alike=True),
    "clip": _of(
        "image_features text_features weights",
        counting={"target": "text_features"}, where=("where",),
        keys=("text_features",), rectangular=_with_target,
    ),
    "cosent": _of("first second similarity", alike=True),
    "cosface": _CLASSES,
    "decoupled": _of(_VIEWS, views=True),
    "distill": _of("query key teacher_query teacher_key", keys=("key", "teacher_key")),
    "gist": _of(
        "anchors positives guide_anchors guide_positives negatives guide_negatives guide_scores",
        keys=("negatives", "guide_negatives"), further_cut=True,
    ),
    "hard_negative": _of(_VIEWS, views=True),
    "info_nce": _of(
        "query positive_key negative_mask key_bias weights", own=("negative_keys",),
        counting={"target": "positive_key"}, where=("where", "negative_where"),
        apart=_without_batch, keys=("positive_key", "key_bias"), rectangular=_with_target,
    ),
    "margin_mse": _of("query positive negatives teacher_margin", apart=_always),
    "margin_softmax": _CLASSES,
    "mega_batch_margin": _of("anchors positives"),
    "multi_similarity": _of("x labels"),
    "multiple_negatives_ranking": _of("anchors candidates ids", further_cut=True),
    "negative_cosine": _of("prediction target", apart=_always),
    "normalized_softmax": _CLASSES,
    "nt_xent": _of(_VIEWS, where=("where", "negative_where"), views=True),
    "pairwise_contrastive": _of("x labels"),
    "proxy_anchor": _of("x labels", shared_queries=True, alike=True),
    "qwen3_embedding": _of("query positive negatives ids"),
    "siglip": _of(
        "image_features text_features ids", keys=("text_features",), rectangular=_with_ids_of_both,
    ),
    "supcon": _of("x labels", counting={"labels": "keys"}),
    "triplet": _of("x labels"),
    "vicreg": _of("first second", alike=True),
    "weighted_decoupled": _of(_VIEWS, views=True),
}  # fmt: skip
