"""GradCache as a loss module that is called with a model's inputs, for trainers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cl_kernels.grad_cache.checking import check_callable

if TYPE_CHECKING:
    from cl_kernels.grad_cache.step import GradCache

Embed = Callable[[Any, Any], Any]


def sentence_embedding(model: Callable[..., Any], batch: Any) -> Any:
    """What a model returns, or the ``"sentence_embedding"`` of a model of sentence-transformers."""
    output = model(batch)
    if not isinstance(output, Mapping):
        return output
    if "sentence_embedding" not in output:
        raise TypeError(
            "embed: expected one that takes embeddings from what the model returns, got none, and "
            f"a {type(output).__name__} without 'sentence_embedding'"
        )
    return output["sentence_embedding"]


class CachedLoss(nn.Module):
    """What ``GradCache.as_loss`` returns: see there.

    ``model`` may be set anew, as trainers do that wrap it; ``loss`` is the loss on embeddings.
    """

    uses_gradient_cache = True  # asked by losses that change a model for one forward pass only

    def __init__(
        self,
        cache: GradCache,
        loss: Callable[..., Any],
        model: nn.Module | None = None,
        embed: Embed = sentence_embedding,
    ) -> None:
        super().__init__()
        check_callable("embed", embed)
        self.model, self.loss = model, loss
        self._cache, self._embed = cache, embed

    def forward(
        self,
        inputs: Iterable[Any],
        labels: Tensor | None = None,
        *,
        model: nn.Module | None = None,
        **loss_options: Any,
    ) -> Any:
        """The loss; its ``backward()`` fills the gradients.

        Args:
            inputs: A list of batches, the model's inputs, one for each argument of the loss.
            labels: Handed on to the loss by this name, unless None.
            model: In the place of the one that this was made with.
            loss_options: Handed on to the loss.
        """
        if isinstance(inputs, (Tensor, Mapping, str)) or not isinstance(inputs, Iterable):
            raise TypeError(f"inputs: expected a list of batches, got {type(inputs).__name__}")
        model = self.model if model is None else model
        if model is None:
            raise ValueError("model: expected one in this call or in as_loss, got none")
        check_callable("model", model)
        if labels is not None:
            loss_options["labels"] = labels
        cache = copy(self._cache)  # with what it has learnt about its encoders
        cache.encoders, cache.loss = partial(self._embed, model), self.loss
        return cache(*((batch,) for batch in inputs), **loss_options)
