"""A loss at several widths of the same embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from cl_kernels._numbers import check_integer, check_number


def matryoshka(
    loss: Callable[..., Any],
    /,
    *embeddings: Any,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    **options: Any,
) -> Any:
    """The weighted sum of a loss of the first d columns of all embeddings, for each d of ``dims``.

    Kusupati et al., "Matryoshka Representation Learning" (2022), equation 1: prefixes of one
    embedding serve where less memory or time is to be spent. Every width is normalised anew by a
    loss that normalises.

    Args:
        loss: A function or a module: one of this package, or any other that takes embeddings.
        embeddings: What it is called with. Floating-point tensors of two dimensions or more whose
            last one is the width of the first such tensor are cut, in lists and tuples too; all
            else is passed on as it is, e.g. labels, a scale, or a teacher's embeddings of another
            width. A matrix that a loss module learns is not cut: hand it in, as in
            ``matryoshka(arcface, x, target, weight, dims=...)``.
        dims: The widths, different from each other, each from 1 to the full width. Without the
            full width among them the last columns are not trained.
        weights: The weight of each width's loss, at least 0. Default: 1 each.
        options: What the loss is called with by name, cut by the same rule.

    Returns:
        What the loss returns: a tensor of any shape.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = matryoshka(nt_xent, view_0, view_1, dims=(768, 256, 64), temperature=0.1)
    """
    dims, weights = _checked(loss, dims, weights)
    matrices = [x for x in _each((*embeddings, *options.values())) if _is_matrix(x)]
    if not matrices:
        raise ValueError("embeddings: expected a floating-point tensor of two dimensions or more")
    width = matrices[0].shape[-1]
    if max(dims) > width:
        raise ValueError(f"dims: expected widths of at most {width}, got {max(dims)}")

    def of_width(dim: int) -> Any:
        def cut(x: Any) -> Any:
            if type(x) in (list, tuple):
                return type(x)(map(cut, x))
            return x[..., :dim] if _is_matrix(x) and x.shape[-1] == width else x

        return loss(*map(cut, embeddings), **{name: cut(x) for name, x in options.items()})

    return sum(weight * of_width(dim) for dim, weight in zip(dims, weights, strict=True))


class MatryoshkaLoss(nn.Module):
    """``matryoshka`` as a module, called as the loss is.

    Args:
        loss: A function or a module. What a module learns, e.g. a temperature, is learned.
        dims: The widths, different from each other.
        weights: The weight of each width's loss, at least 0. Default: 1 each.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = MatryoshkaLoss(InfoNCELoss(0.05), dims=(768, 256, 64))
        loss(query, positive_key).backward()
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.dims, self.weights = _checked(loss, dims, weights)

    def forward(self, *embeddings: Any, **options: Any) -> Any:
        for name in ("dims", "weights"):
            if name in options:
                raise TypeError(f"{name}: expected when the module is made, got it in a call")
        return matryoshka(self.loss, *embeddings, dims=self.dims, weights=self.weights, **options)

    def extra_repr(self) -> str:
        function = "" if isinstance(self.loss, nn.Module) else f"loss={_name(self.loss)}, "
        return f"{function}dims={self.dims}, weights={self.weights}"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))


def _each(arguments: Iterable[Any]) -> Iterator[Any]:
    """Those of lists and tuples one by one."""
    for x in arguments:
        yield from _each(x) if type(x) in (list, tuple) else (x,)


def _is_matrix(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dim() >= 2


def _checked(
    loss: Callable[..., Any], dims: Sequence[int], weights: Sequence[float] | None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if not callable(loss):
        raise TypeError(f"loss: expected a function or a module, got {type(loss).__name__}")
    for name, values in (("dims", dims), ("weights", weights)):
        if values is not None and not isinstance(values, (list, tuple)):
            kind = type(values).__name__
            raise TypeError(f"{name}: expected a list or a tuple of numbers, got {kind}")
    if not dims:
        raise ValueError("dims: expected at least one width, got none")
    for dim in dims:
        check_integer("dims", dim, least=1)
    if len(set(dims)) < len(dims):
        raise ValueError(f"dims: expected different widths, got {list(dims)}")
    if weights is None:
        return tuple(dims), (1.0,) * len(dims)
    if len(weights) != len(dims):
        raise ValueError(
            f"weights: expected one for each of the {len(dims)} dims, got {len(weights)}"
        )
    for weight in weights:
        check_number("weights", weight)
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weights: expected finite numbers, at least 0, got {weight}")
    return tuple(dims), tuple(weights)
