"""A loss on a whole batch: embeddings, loss, and a graph back into the encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cl_kernels.grad_cache.above import GraphAbove, has_graph, requires_grad
from cl_kernels.grad_cache.arguments import as_arguments
from cl_kernels.grad_cache.as_loss import CachedLoss, Embed, sentence_embedding
from cl_kernels.grad_cache.call import Call
from cl_kernels.grad_cache.checking import (
    check_callable,
    check_chunks,
    check_count,
    detached,
    one_each,
    total_of,
)
from cl_kernels.grad_cache.chunks import split, tensors
from cl_kernels.grad_cache.failure import undone_by_errors
from cl_kernels.grad_cache.scaled import Scaler, backward, check_scaled_by_caller
from cl_kernels.grad_cache.tower import GetEmbedding, Tower
from cl_kernels.grad_cache.wrappers import ddp_parts, module_of, parameters
from cl_kernels.ranks.group import without_compiling

Encoder = Callable[..., Any]


class GradCache:
    """The loss of a whole batch, and its gradients, with the activations of one chunk at a time.

    Calling it takes the place of forward pass and loss. ``backward()`` of the loss, or of whatever
    is made of it, adds the gradients to ``.grad``; they equal those of the whole batch for encoders
    that treat samples independently. Gao et al., "Scaling Deep Contrastive Learning Batch Size
    under Memory Limited Setup" (2021).

        cache = GradCache([image_encoder, text_encoder], ClipLoss(), chunk_size=64)
        loss = cache(images, texts, logit_scale=20.0)
        loss.backward()  # or scaler.scale(loss).backward(), (loss / steps + other).backward()
        optimizer.step()

    ``cache.step(images, texts, logit_scale=20.0)`` does both at once; ``GradCache.as_loss`` is a
    module for trainers. docs/grad_cache.md has them all.

    Inputs: a tuple is an encoder's positional arguments, a mapping its keyword arguments; anything
    else is its one argument. Their tensors and arrays are cut along the first dimension, and so
    are lists, which hold samples; other values go to every chunk. A model of sentence-transformers
    takes one dictionary as ``(features,)``. A list of tensors of one length is a tuple of arguments
    for an encoder that needs two or more.

    Args:
        encoders: One callable that encodes every input, or one for each. It returns embeddings of
            shape [n, D] (or [n, ...]) for n samples, or a tuple of such tensors, which become
            arguments of the loss one after the other. Give modules, their bound methods or
            ``functools.partial`` of a function and modules: of other functions neither DDP nor
            buffers are known.
        loss: Called once with the embeddings of the whole batch, in the order of the inputs, and
            with the keyword arguments of the call; returns a 0-d tensor, or a mapping of names to
            such. Its own parameters, and tensors among the arguments, get their gradients too. It
            may read and fill a queue of earlier embeddings.
        chunk_size: At most so many samples are encoded at a time: a number, or one for each input.
        max_tokens: At most so many tokens, padding included, are encoded at a time, of inputs with
            an ``attention_mask`` of shape [N, T]; a sample of more tokens is a chunk by itself.
            Samples are encoded in the order of their length, without the columns that are padding
            to the whole chunk (an encoder must not depend on those); the loss sees them in their
            own order. Inputs without a mask are cut by ``chunk_size``, which limits the others too
            if both are given.
        get_embedding: ``get_embedding(output, inputs)`` takes the embeddings from what an encoder
            returned for the inputs of a chunk, as from a Hugging Face ``ModelOutput``.
        device: Where the inputs of a chunk are moved; they may wait on the CPU.
        embedding_device: Where the embeddings are gathered, their gradients kept and the loss
            taken; by default, where the encoders leave them.
        allow_unused: Whether the loss may leave an input out, or detach all that is made of it.
        whole_gradients: Whether parameters get their gradients in one piece, summed up over the
            chunks, which takes the room of up to two more sets of them, instead of chunk by chunk.
            It is needed where a backward pass has other terms through the same DDP. It is done
            anyway in the forward pass of a DDP, and for parameters with hooks after accumulation.
        scaler: For ``step``: a ``GradScaler``; as ever, ``scaler.step`` and ``scaler.update`` are
            the caller's.
        accumulation_steps: For ``step``: calls between two steps of the optimizer. Gradients, not
            the loss returned, are divided by it.

    Autocast: put the call into ``torch.autocast``; the second encoding enters it again, wherever
    ``backward()`` is called, and backward passes are kept out of it.

    Encoders in DistributedDataParallel reduce their gradients once, in the backward pass of their
    last chunk, and ranks may differ in their numbers of chunks; ``no_sync()`` around a call is
    remembered by its loss. A loss with parameters needs a DDP of its own. Other wrappers reduce as
    they do in any backward pass, here once a chunk.

    Inputs and keyword arguments may have a graph above them, as the embeddings of another module
    do: their gradients pass through it once, when all chunks are done.

    Random numbers of torch's global generators are replayed in the second encoding, and buffers
    pass through the same values; both are then as ``backward()`` found them. BatchNorm normalises
    each chunk by the chunk's statistics, as when gradients are accumulated; parameters of a half
    type round their gradients once a chunk. Under ``torch.no_grad()`` a call returns the loss and
    does nothing else.
    """

    def __init__(
        self,
        encoders: Encoder | Sequence[Encoder],
        loss: Callable[..., Any],
        *,
        chunk_size: int | Sequence[int] | None = None,
        max_tokens: int | None = None,
        get_embedding: GetEmbedding | None = None,
        device: torch.device | str | None = None,
        embedding_device: torch.device | str | None = None,
        allow_unused: bool = False,
        whole_gradients: bool = False,
        scaler: Scaler | None = None,
        accumulation_steps: int = 1,
    ) -> None:
        if isinstance(encoders, Sequence | nn.ModuleList):
            encoders = list(encoders)
        for encoder in encoders if isinstance(encoders, list) else [encoders]:
            check_callable("encoders", encoder)
        check_callable("loss", loss)
        if get_embedding is not None:
            check_callable("get_embedding", get_embedding)
        check_chunks(chunk_size, max_tokens)
        check_count("accumulation_steps", accumulation_steps)
        self.encoders = encoders
        self.loss = loss
        self.chunk_size = chunk_size
        self.max_tokens = max_tokens
        self.get_embedding = get_embedding
        self.device = None if device is None else torch.device(device)
        self.embedding_device = None if embedding_device is None else torch.device(embedding_device)
        self.allow_unused = allow_unused
        self.whole_gradients = whole_gradients
        self.scaler = scaler
        self.accumulation_steps = accumulation_steps
        self._checked: set[str] = set()  # encoders that were seen to repeat themselves

    @without_compiling
    def __call__(self, *inputs: Any, **loss_options: Any) -> Any:
        """The loss, with a graph: its ``backward()`` adds the gradients to ``.grad``, once.

        Args:
            inputs: One batch for each encoder, or several for the one encoder.
            loss_options: Handed on to the loss.

        Returns:
            What the loss returned; of a mapping add up what shall count, and call ``backward()``
            of the sum. A loss that is dropped without ``backward()`` is warned of.

        Raises:
            TypeError, ValueError: The message names the argument, what was expected and what came.
                ``backward()`` raises ValueError for an input that the loss does not use.
            RuntimeError: From ``backward()``: the second encoding of a chunk does not repeat the
                first; a parameter or an input was changed in place in between; a second backward
                pass, one with ``create_graph=True``, or ``torch.autograd.grad``. On a GPU an
                encoder is compared the first time that it is trained, and under
                ``cl_kernels.debug_checks()``.

        After these, an encoder's own errors and interruptions, buffers and random numbers are as
        before the call, or the ``backward()``, and ``.grad`` of the encoders is None where it was;
        gradients that were there already may have been added to in part.
        """
        if torch.is_grad_enabled():
            check_scaled_by_caller(self.scaler, self.accumulation_steps)
        call = self._prepared(inputs)
        with undone_by_errors(call.states.values()):
            loss = call.loss(self.loss, loss_options)
        call.await_backward()
        return loss

    @without_compiling
    def step(self, *inputs: Any, **loss_options: Any) -> Any:
        """A call and its ``backward()`` at once: adds the gradients to ``.grad``.

        Args:
            inputs, loss_options: As for a call.

        Returns:
            The loss, detached. Of a mapping, the part named "loss" is propagated if there is one,
            else the sum of all parts.

        Raises:
            FloatingPointError: The loss is not finite, on this rank or, with DDP, another (which
                takes an all-reduce of one number). With an enabled scaler this is not raised: the
                scaler skips such a step. A loss on a GPU is looked at under
                ``cl_kernels.debug_checks()`` only, as that waits for the GPU.
            TypeError, ValueError, RuntimeError: As a call and its ``backward()``.

        After an error all is as before, but for gradients that were there already. Nothing was
        sent into graphs above the inputs.
        """
        above = GraphAbove(has_graph)
        inputs, loss_options = above.cut(inputs), above.cut_options(loss_options)
        call = self._prepared(inputs)
        leaves = [*parameters([module_of(self.loss)]), *tensors((inputs, loss_options))]
        with undone_by_errors(call.states.values(), leaves):
            loss = call.loss(self.loss, loss_options)
            if torch.is_grad_enabled():
                ddp = call.ddp + ddp_parts(module_of(self.loss))
                backward(total_of(loss), self.scaler, self.accumulation_steps, ddp)
                call.check_done()
        above.backward()
        return detached(loss)

    @staticmethod
    def as_loss(
        loss: Callable[..., Any],
        model: nn.Module | None = None,
        *,
        embed: Embed = sentence_embedding,
        **settings: Any,
    ) -> CachedLoss:
        """A loss module for trainers: called with a model's inputs, it embeds them in chunks.

            loss = GradCache.as_loss(InfoNCELoss(0.05), model, chunk_size=32)
            trainer = SentenceTransformerTrainer(model, loss=loss, ...)

        Args:
            loss: As for ``GradCache``: of the embeddings of each batch.
            model: What embeds; or it is given in the call, as ``loss(batches, model=model)``.
            embed: ``embed(model, batch)`` returns the embeddings of a batch, or of a chunk of it;
                by default ``model(batch)``, or what that names ``"sentence_embedding"``.
            settings: ``chunk_size``, ``max_tokens``, ``device``, ``embedding_device`` and
                ``allow_unused``, as for ``GradCache``.

        Returns:
            A module called as ``loss(batches, labels=None, model=None, **loss_options)``, with
            ``model`` and ``loss`` among its children. ``batches`` is a list, as of
            sentence-transformers' features.
        """
        for name in ("scaler", "accumulation_steps", "get_embedding"):
            if name in settings:
                instead = "embed" if name == "get_embedding" else "the trainer's own"
                raise TypeError(f"{name}: expected {instead}, got {name} in as_loss")
        return CachedLoss(GradCache((), loss, **settings), loss, model, embed)

    def _prepared(self, inputs: tuple[Any, ...]) -> Call:
        if not inputs:
            raise ValueError("inputs: expected at least one, got none")
        encoders = one_each("encoders", self.encoders, len(inputs))
        sizes = one_each("chunk_size", self.chunk_size, len(inputs))
        above = GraphAbove(requires_grad)
        towers = []
        for i, (encoder, batch, size) in enumerate(zip(encoders, inputs, sizes, strict=True)):
            batch = above.cut(as_arguments(f"inputs[{i}]", encoder, batch))
            towers.append(self._tower(i, encoder, batch, size))
        return Call(
            towers,
            above,
            allow_unused=self.allow_unused,
            whole_gradients=self.whole_gradients,
            checked=self._checked,
        )

    def _tower(self, index: int, encoder: Encoder, batch: Any, size: int | None) -> Tower:
        return Tower(
            index,
            encoder,
            batch,
            split(f"inputs[{index}]", batch, size, self.max_tokens),
            get_embedding=self.get_embedding,
            device=self.device,
            embedding_device=self.embedding_device,
            must_check=f"encoders[{index}]" not in self._checked,
        )


def grad_cache_step(
    encoders: Encoder | Sequence[Encoder],
    inputs: Sequence[Any],
    loss: Callable[..., Any],
    *,
    loss_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """One step of ``GradCache`` in one call: ``step`` of a ``GradCache`` made of the settings.

    Args:
        encoders, loss: As for ``GradCache``.
        inputs: A list or tuple of batches, one for each encoder.
        loss_options: Keyword arguments of the loss.
        settings: ``chunk_size`` and the other settings of ``GradCache``.

    Returns:
        The loss, detached. Gradients were added to ``.grad``.
    """
    if not isinstance(inputs, list | tuple):
        raise TypeError(f"inputs: expected a list of batches, got {type(inputs).__name__}")
    return GradCache(encoders, loss, **settings).step(*inputs, **(loss_options or {}))
