"""The step: embeddings, loss, and the encoders' gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cl_kernels.checks import readable
from cl_kernels.grad_cache.above import GraphAbove
from cl_kernels.grad_cache.chunks import split, tensors
from cl_kernels.grad_cache.failure import check_finite, parameters, undone_by_errors
from cl_kernels.grad_cache.replay import (
    ModuleState,
    RandomStates,
    autocast_disabled,
    ddp_parts,
    module_of,
    no_sync,
)
from cl_kernels.grad_cache.tower import GetEmbedding, Tower

Encoder = Callable[..., Any]


class Scaler(Protocol):
    """What is used of ``torch.amp.GradScaler``."""

    def scale(self, outputs: Tensor) -> Any: ...
    def is_enabled(self) -> bool: ...


class GradCache:
    """Gradients of a loss on the whole batch, with the activations of one chunk at a time.

    Calling it takes the place of forward pass, loss and ``backward()``: gradients are added to
    ``.grad``, and equal those of the whole batch for encoders that treat samples independently.
    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (2021).

        cache = GradCache([image_encoder, text_encoder], ClipLoss(), chunk_size=64)
        loss = cache(images, texts, logit_scale=20.0)
        optimizer.step()

    Inputs: a tuple is an encoder's positional arguments, a mapping its keyword arguments; anything
    else is its one argument. Their tensors and arrays are cut along the first dimension, and so
    are lists, which hold samples; other values go to every chunk. A model of sentence-transformers
    takes one dictionary as ``(features,)``.

    Args:
        encoders: One callable that encodes every input, or one for each. It returns embeddings of
            shape [n, D] (or [n, ...]) for n samples, or a tuple of such tensors, which become
            arguments of the loss one after the other. Give modules or their bound methods: of
            other functions neither DDP nor buffers are known.
        loss: Called with the embeddings of the whole batch, in the order of the inputs, and with
            the keyword arguments of the call; returns a 0-d tensor. Its own parameters, and
            tensors among the arguments, get their gradients too.
        chunk_size: At most so many samples are encoded at a time: a number, or one for each input.
        max_tokens: At most so many tokens, padding included, are encoded at a time, of inputs with
            an ``attention_mask`` of shape [N, T]. Samples are encoded in the order of their
            length, without the columns that are padding to the whole chunk (an encoder must not
            depend on those); the loss sees them in their own order. Inputs without a mask are cut
            by ``chunk_size``, which limits the others too if both are given.
        get_embedding: ``get_embedding(output, inputs)`` takes the embeddings from what an encoder
            returned for the inputs of a chunk, as from a Hugging Face ``ModelOutput``.
        device: Where the inputs of a chunk are moved; they may wait on the CPU.
        embedding_device: Where the embeddings are gathered, their gradients kept and the loss
            taken; by default, where the encoders leave them.
        scaler: A ``GradScaler``; as ever, ``scaler.step`` and ``scaler.update`` are the caller's.
        accumulation_steps: Calls between two steps of the optimizer. Gradients, not the loss
            returned, are divided by it.

    Autocast: put the call into ``torch.autocast``; backward passes are kept out of it. Encoders in
    DistributedDataParallel reduce their gradients once, in the backward pass of their last chunk,
    and ranks may differ in their numbers of chunks; when gradients accumulate over calls, put all
    but the last call into ``no_sync()`` of each. A loss with parameters needs a DDP of its own.
    Other wrappers reduce as they do in any backward pass, here once a chunk. Under
    ``torch.no_grad()`` a call returns the loss and does nothing else.

    With DDP, ranks look at each other's losses wherever these are looked at, so that one that is
    not finite ends all of them. It costs a call one all-reduce of a single number, a round trip
    between the ranks; they must make the same number of calls.

    Inputs and keyword arguments may have a graph above them, as the embeddings of another module
    do: their gradients pass through it once, when all chunks are done.

    Random numbers of torch's global generators are replayed in the second encoding and are then
    where one forward pass would have left them, and so are buffers. BatchNorm normalises each
    chunk by the chunk's statistics, as when gradients are accumulated; parameters of a half type
    round their gradients once a chunk.
    """

    def __init__(
        self,
        encoders: Encoder | Sequence[Encoder],
        loss: Callable[..., Tensor],
        *,
        chunk_size: int | Sequence[int] | None = None,
        max_tokens: int | None = None,
        get_embedding: GetEmbedding | None = None,
        device: torch.device | str | None = None,
        embedding_device: torch.device | str | None = None,
        scaler: Scaler | None = None,
        accumulation_steps: int = 1,
    ) -> None:
        if isinstance(encoders, Sequence | nn.ModuleList):
            encoders = list(encoders)
        for encoder in encoders if isinstance(encoders, list) else [encoders]:
            _check_callable("encoders", encoder)
        _check_callable("loss", loss)
        if get_embedding is not None:
            _check_callable("get_embedding", get_embedding)
        if chunk_size is None and max_tokens is None:
            raise ValueError("chunk_size: expected a number where max_tokens is None, got None")
        for size in chunk_size if isinstance(chunk_size, Sequence) else [chunk_size]:
            if size is not None:
                _check_count("chunk_size", size)
        if max_tokens is not None:
            _check_count("max_tokens", max_tokens)
        _check_count("accumulation_steps", accumulation_steps)
        self.encoders = encoders
        self.loss = loss
        self.chunk_size = chunk_size
        self.max_tokens = max_tokens
        self.get_embedding = get_embedding
        self.device = None if device is None else torch.device(device)
        self.embedding_device = None if embedding_device is None else torch.device(embedding_device)
        self.scaler = scaler
        self.accumulation_steps = accumulation_steps
        self._checked: set[str] = set()  # encoders that were seen to repeat themselves

    def __call__(self, *inputs: Any, **loss_options: Any) -> Tensor:
        """Adds the gradients to ``.grad`` and returns the loss, detached.

        Args:
            inputs: One batch for each encoder, or several for the one encoder.
            loss_options: Handed on to the loss.

        Raises:
            TypeError, ValueError: The message names the argument, what was expected and what came.
                No gradient was touched.
            FloatingPointError: The loss is not finite, on this rank or another. No gradient was
                touched. With an enabled scaler this is not raised: the scaler skips such a step. A
                loss on a GPU is looked at under ``cl_kernels.debug_checks()`` only, as that waits
                for the GPU.
            RuntimeError: The second encoding of a chunk does not repeat the first. On a GPU an
                encoder is checked the first time that it is trained, and under ``debug_checks()``.

        After these, an encoder's own errors and interruptions, buffers and random numbers are as
        before the call, and ``.grad`` is None where it was; gradients that were there already may
        have been added to in part.
        """
        above = GraphAbove()
        inputs, loss_options = above.cut(inputs), above.cut_options(loss_options)
        towers = self._towers(inputs)
        states = {m: ModuleState(m) for m in (tower.module for tower in towers) if m is not None}
        leaves = [*parameters([*states, module_of(self.loss)]), *tensors((inputs, loss_options))]
        with undone_by_errors(states.values(), leaves):
            loss = self._step(towers, states, loss_options)
        above.backward()
        return loss

    def _step(
        self,
        towers: list[Tower],
        states: dict[nn.Module, ModuleState],
        loss_options: dict[str, Any],
    ) -> Tensor:
        for tower in towers:
            tower.encode_all()
        embeddings = [x for tower in towers for x in tower.embeddings]
        if not torch.is_grad_enabled():
            return _check_loss(self.loss(*embeddings, **loss_options))

        trained = [tower for tower in towers if tower.trained]
        for module, state in states.items():
            if any(tower.module is module for tower in trained):
                state.restore()
        ddp = [part for tower in trained for part in tower.ddp] + ddp_parts(module_of(self.loss))
        loss = self._backward_to_embeddings(embeddings, loss_options, ddp)
        _backward_to_encoders(trained)
        self._checked.update(tower.name for tower in trained)
        return loss

    def _towers(self, inputs: tuple[Any, ...]) -> list[Tower]:
        if not inputs:
            raise ValueError("inputs: expected at least one, got none")
        encoders = _one_each("encoders", self.encoders, len(inputs))
        sizes = _one_each("chunk_size", self.chunk_size, len(inputs))
        return [
            Tower(
                name := f"encoders[{i}]",
                encoder,
                batch,
                split(f"inputs[{i}]", batch, size, self.max_tokens),
                get_embedding=self.get_embedding,
                device=self.device,
                embedding_device=self.embedding_device,
                must_check=name not in self._checked,
            )
            for i, (encoder, batch, size) in enumerate(zip(encoders, inputs, sizes, strict=True))
        ]

    def _backward_to_embeddings(
        self,
        embeddings: list[Tensor],
        loss_options: dict[str, Any],
        ddp: list[DistributedDataParallel],
    ) -> Tensor:
        loss = _check_loss(self.loss(*embeddings, **loss_options))
        if not loss.requires_grad:
            raise ValueError(
                "loss: expected one that requires grad, got one that does not; is every encoder "
                "frozen or run under torch.no_grad()?"
            )
        scaler = self.scaler if self.scaler is not None and self.scaler.is_enabled() else None
        if scaler is None and readable(loss):
            check_finite(loss, ddp)
        scaled = loss / self.accumulation_steps
        with autocast_disabled():
            (scaled if scaler is None else scaler.scale(scaled)).backward()
        return loss.detach()


def grad_cache_step(
    encoders: Encoder | Sequence[Encoder],
    inputs: Sequence[Any],
    loss: Callable[..., Tensor],
    *,
    loss_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Tensor:
    """One step of ``GradCache`` in one call: ``GradCache(encoders, loss, **settings)(*inputs)``.

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
    return GradCache(encoders, loss, **settings)(*inputs, **(loss_options or {}))


def _backward_to_encoders(towers: list[Tower]) -> None:
    """The second encoding, in the order of the first: buffers pass through the same values."""
    steps = [(tower, number) for tower in towers for number in range(len(tower.chunks))]
    last = {ddp: step for step in steps if step[0].has_gradients for ddp in step[0].ddp}
    random_state = RandomStates(1)
    try:
        for tower, number in steps:
            with no_sync([ddp for ddp in tower.ddp if last.get(ddp) != (tower, number)]):
                tower.backward(number)
    finally:
        random_state.restore(0)


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name}: expected one for each of the {count} inputs, got {len(value)}")
    return list(value)


def _check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name}: expected a callable, got {type(value).__name__}")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def _check_loss(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss: expected a 0-d tensor, got {type(loss).__name__}")
    if loss.dim() != 0:
        raise ValueError(f"loss: expected a 0-d tensor, got shape {list(loss.shape)}")
    return loss
