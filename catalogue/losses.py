"""Every loss once: what the tests, the benchmarks and the README's table know of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import cl_kernels
from catalogue import eager, textbook
from cl_kernels import PairFilter


class Goal(NamedTuple):
    """Time of forward + backward in units of the bare product; the floor is in operations."""

    times_product: float
    floor: float


class LossCase(NamedTuple):
    """A loss, the forms it is held against, and how to call them all.

    Args:
        ours: The function; its name is the loss's.
        module: The same as an ``nn.Module``.
        textbook: The N x N form with every option, for any floating dtype: the truth in float64.
        eager: As people write it, with every option: what ours is timed against.
        inputs: Names of what it is called with: two sets of embeddings of the same rows.
        scale: Name of the argument that scales the similarities.
        inverted: Whether that is a temperature, which divides them.
        typical: What the scale argument is in the benchmarks.
        views: Whether the similarity matrix is that of the 2B rows of both sets with themselves.
        softmax: Whether a row is one classification: without negatives its loss is 0.
        options: Sets of further arguments by name, made for batches of so many rows; the tests try
            each, and train the floating tensors among them too.
        goals: By rows of the similarity matrix and width.
        title: In the README's table.
        paper: Authors, title, year; equation.
    """

    ours: Callable[..., Tensor]
    module: type[nn.Module]
    textbook: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    inputs: tuple[str, str]
    scale: str
    inverted: bool
    typical: float
    views: bool
    softmax: bool
    options: dict[str, Callable[[int, int], dict[str, Any]]]
    goals: dict[tuple[int, int], Goal]
    title: str
    paper: str

    @property
    def name(self) -> str:
        return self.ours.__name__

    @property
    def trains_scale(self) -> bool:
        """Users hand in what they have learned: an inverse temperature, not a temperature."""
        return not self.inverted

    def argument(self, scale: Any) -> Any:
        """The scale argument for similarities that are multiplied by ``scale``."""
        return 1 / scale if self.inverted else scale

    def call(self, form: Callable[..., Tensor], first, second, scale, **options) -> Tensor:
        """``ours`` or ``textbook`` of similarities that are multiplied by ``scale``; rows are
        normalized unless told otherwise."""
        options = {"normalize": True, self.scale: self.argument(scale)} | options
        return form(first, second, **options)


def labels(rows: int, classes: int = 6) -> Tensor:
    return torch.arange(rows) * 7 % classes


def other_class(rows: int, columns: int | None = None) -> PairFilter:
    return PairFilter(labels(rows), labels(columns or rows), "different")


def plain(B: int, D: int) -> dict[str, Any]:
    return {}


def target(B: int) -> Tensor:
    return torch.arange(B) * 3 % (B - 4)


def several(B: int) -> Tensor:
    """Two positives of every other query and one of the others; the last has none."""
    index = torch.arange(B)
    lists = torch.stack((index, torch.where(index % 2 == 0, (index + 1) % B, -1)), 1)
    lists[1::2] = lists[0::2][: len(lists[1::2])]  # in pairs that share both
    lists[-1] = -1
    return lists


def overlapping(B: int) -> Tensor:
    """Three of each, of which the next query has two."""
    lists = (torch.arange(B)[:, None] + torch.arange(3)) % B
    return torch.where((torch.arange(B) % 3 == 0)[:, None], -1, lists)


LOSSES = {
    case.name: case
    for case in (
        LossCase(
            ours=cl_kernels.nt_xent,
            module=cl_kernels.NTXentLoss,
            textbook=textbook.nt_xent,
            eager=eager.nt_xent,
            inputs=("view_0", "view_1"),
            scale="temperature",
            inverted=True,
            typical=0.5,
            views=True,
            softmax=True,
            options={
                "plain": plain,
                "queue": lambda B, D: {"negative_keys": torch.randn(33, D)},
                "where": lambda B, D: {"where": other_class(2 * B)},
                "queue and where": lambda B, D: {
                    "negative_keys": torch.randn(33, D),
                    "where": [other_class(2 * B)],
                },
                "two filters": lambda B, D: {"where": (other_class(2 * B), other_class(2 * B))},
                "where on the queue": lambda B, D: {
                    "negative_keys": torch.randn(33, D),
                    "negative_where": (other_class(2 * B, 33),),
                },
            },
            goals={(8192, 128): Goal(2.6, 2), (8192, 768): Goal(2.4, 2)},
            title="NT-Xent (SimCLR), with further negatives or a queue",
            paper="Chen et al., A Simple Framework for Contrastive Learning of Visual "
            "Representations (2020), equation 1",
        ),
        LossCase(
            ours=cl_kernels.info_nce,
            module=cl_kernels.InfoNCELoss,
            textbook=textbook.info_nce,
            eager=eager.info_nce,
            inputs=("query", "positive_key"),
            scale="temperature",
            inverted=True,
            typical=0.1,
            views=False,
            softmax=True,
            options={
                "plain": plain,
                "shared": lambda B, D: {"negative_keys": torch.randn(33, D)},
                "own": lambda B, D: {"negative_keys": torch.randn(B, 5, D)},
                "one own": lambda B, D: {"negative_keys": torch.randn(B, 1, D)},
                "shared and batch": lambda B, D: {
                    "negative_keys": torch.randn(33, D),
                    "in_batch_negatives": True,
                },
                "own and batch": lambda B, D: {
                    "negative_keys": torch.randn(B, 5, D),
                    "in_batch_negatives": True,
                },
                "target": lambda B, D: {"target": target(B)},
                "int32 target, queue": lambda B, D: {
                    "target": target(B).int(),
                    "negative_keys": torch.randn(33, D),
                },
                "where": lambda B, D: {"where": other_class(B)},
                "where, shared and batch": lambda B, D: {
                    "negative_keys": torch.randn(33, D),
                    "in_batch_negatives": True,
                    "where": other_class(B),
                },
                "where on the queue": lambda B, D: {
                    "negative_keys": torch.randn(33, D),
                    "where": (
                        other_class(B, 33),
                        PairFilter(labels(B, 3), labels(33, 3), "same"),
                    ),
                },
                "where and target": lambda B, D: {"target": target(B), "where": other_class(B)},
                "several": lambda B, D: {"target": several(B)},
                "several, inside": lambda B, D: {"target": several(B), "positives": "inside"},
                "several pairs": lambda B, D: {"target": several(B), "positives": "pairs"},
                "several, overlapping": lambda B, D: {"target": overlapping(B)},
                "several of a queue": lambda B, D: {
                    "target": several(B),
                    "negative_keys": torch.randn(33, D),
                    "in_batch_negatives": True,
                    "where": other_class(B),
                    "weights": torch.rand(B) + 0.1,
                },
                "filters everywhere": lambda B, D: {
                    "negative_keys": torch.randn(33, D),
                    "in_batch_negatives": True,
                    "where": (other_class(B), other_class(B)),
                    "negative_where": (other_class(B, 33),),
                },
                "key bias": lambda B, D: {"key_bias": torch.randn(B)},
                "key bias and target": lambda B, D: {
                    "key_bias": torch.randn(B),
                    "target": target(B),
                },
                "key bias of several": lambda B, D: {
                    "key_bias": torch.randn(B),
                    "target": overlapping(B),
                },
                "weights": lambda B, D: {"weights": torch.rand(B) + 0.1},
                "label smoothing": lambda B, D: {"label_smoothing": 0.1},
                "smoothing, shared and batch": lambda B, D: {
                    "label_smoothing": 0.1,
                    "negative_keys": torch.randn(33, D),
                    "in_batch_negatives": True,
                    "key_bias": torch.randn(B),
                },
                "smoothing, own": lambda B, D: {
                    "label_smoothing": 0.1,
                    "negative_keys": torch.randn(B, 5, D),
                },
            },
            goals={(8192, 256): Goal(4.8, 4)},
            title="InfoNCE: in-batch, shared or own negatives, targets in a larger set",
            paper="Van den Oord et al., Representation Learning with Contrastive Predictive Coding "
            "(2018), equation 4",
        ),
        LossCase(
            ours=cl_kernels.clip,
            module=cl_kernels.ClipLoss,
            textbook=textbook.clip,
            eager=eager.clip,
            inputs=("image_features", "text_features"),
            scale="logit_scale",
            inverted=False,
            typical=1 / 0.07,
            views=False,
            softmax=True,
            options={
                "plain": plain,
                "bias": lambda B, D: {"logit_bias": torch.tensor(-10.0)},
                "where": lambda B, D: {"where": other_class(B)},
                "target": lambda B, D: {"target": target(B)},
                "label smoothing": lambda B, D: {"label_smoothing": 0.1},
                "weights": lambda B, D: {"weights": torch.rand(B) + 0.1},
            },
            goals={(8192, 256): Goal(4.8, 4)},
            title="CLIP, both directions from one visit",
            paper="Radford et al., Learning Transferable Visual Models From Natural Language "
            "Supervision (2021), figure 3",
        ),
        LossCase(
            ours=cl_kernels.siglip,
            module=cl_kernels.SigLipLoss,
            textbook=textbook.siglip,
            eager=eager.siglip,
            inputs=("image_features", "text_features"),
            scale="logit_scale",
            inverted=False,
            typical=10.0,
            views=False,
            softmax=False,
            options={
                "plain": plain,
                "bias": lambda B, D: {"logit_bias": torch.tensor(-10.0)},
                "ids": lambda B, D: {"ids": labels(B), "logit_bias": torch.tensor(-5.0)},
            },
            goals={},
            title="SigLIP: a binary classification of every pair",
            paper="Zhai et al., Sigmoid Loss for Language Image Pre-Training (2023), equation 1",
        ),
    )
}
