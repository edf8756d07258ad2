"""One encoder on one input: the embeddings of the whole batch, and the way back chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cl_kernels.checks import readable
from cl_kernels.grad_cache.chunks import Chunk, as_index, take
from cl_kernels.grad_cache.replay import (
    RandomStates,
    autocast_disabled,
    ddp_parts,
    module_of,
    no_sync,
)

# Kernels with and without a graph differ by roundings; other random numbers differ by more.
REPLAY_TOLERANCE = 0.05

GetEmbedding = Callable[[Any, Any], Any]


class Tower:
    """``embeddings`` are leaves: for each tensor that the encoder returns, that of all rows."""

    def __init__(
        self,
        name: str,
        encoder: Callable[..., Any],
        inputs: Any,
        chunks: list[Chunk],
        *,
        get_embedding: GetEmbedding | None,
        device: torch.device | None,
        embedding_device: torch.device | None,
        must_check: bool,
    ) -> None:
        self.module = module_of(encoder)
        self.ddp = ddp_parts(self.module)
        if any(ddp.static_graph for ddp in self.ddp):
            raise ValueError(
                f"{name}: expected DistributedDataParallel without static_graph, as some backward "
                "passes leave out the reduction, got one with it"
            )
        self.name = name
        self.chunks = chunks
        self.embeddings: tuple[Tensor, ...] = ()
        self._encoder = encoder
        self._inputs = inputs
        self._get_embedding = get_embedding
        self._device = device
        self._embedding_device = embedding_device
        self._must_check = must_check  # that encoding is replayed, even if that waits for a GPU
        self._random_states = RandomStates(len(chunks))

    @property
    def trained(self) -> bool:
        return any(x.requires_grad for x in self.embeddings)

    @property
    def has_gradients(self) -> bool:
        return any(x.grad is not None for x in self.embeddings)

    def encode_all(self) -> None:
        """Fills ``embeddings``.

        The first chunk gets a graph, dropped at once, which tells what is trained: a frozen
        encoder runs only once.
        """
        with_grad = torch.is_grad_enabled()
        with no_sync(self.ddp):
            self._encode_into_place(0)
            if with_grad and not self.trained:
                self._check_frozen()
            with torch.no_grad():
                for number in range(1, len(self.chunks)):
                    self._encode_into_place(number)

    def backward(self, number: int) -> None:
        """Encodes a chunk again and propagates its part of the embeddings' gradients.

        If the loss detached all the embeddings it only encodes, for the sake of buffers.
        """
        chunk = self.chunks[number]
        self._random_states.restore(number)
        outputs = self._encode(chunk)
        if number == 0:
            self._check_replayed(outputs)
        roots, gradients = [], []
        for whole, output in zip(self.embeddings, outputs, strict=True):
            if whole.grad is not None:
                roots.append(output)
                rows = as_index(chunk.rows, whole.device)
                gradients.append(whole.grad[rows].to(output.device))
        if roots:
            with autocast_disabled():
                torch.autograd.backward(roots, gradients)

    def _encode(self, chunk: Chunk) -> tuple[Tensor, ...]:
        inputs = take(self._inputs, chunk, self._device)
        if isinstance(inputs, Mapping):
            output = self._encoder(**inputs)
        else:
            output = self._encoder(*(inputs if isinstance(inputs, tuple) else (inputs,)))
        if self._get_embedding is not None:
            output = self._get_embedding(output, inputs)
        outputs = output if isinstance(output, tuple) else (output,)
        for x in outputs:
            self._check_embedding(x, chunk.size)
        return outputs

    def _encode_into_place(self, number: int) -> None:
        chunk = self.chunks[number]
        self._random_states.save(number)
        outputs = self._encode(chunk)
        if not self.embeddings:
            self.embeddings = tuple(self._leaf_like(x) for x in outputs)
        self._check_alike(outputs)
        with torch.no_grad():
            for whole, output in zip(self.embeddings, outputs, strict=True):
                whole[as_index(chunk.rows, whole.device)] = output.to(whole.device)

    def _leaf_like(self, x: Tensor) -> Tensor:
        shape = sum(chunk.size for chunk in self.chunks), *x.shape[1:]
        device = self._embedding_device or x.device
        return torch.empty(shape, dtype=x.dtype, device=device, requires_grad=x.requires_grad)

    def _check_embedding(self, x: Any, rows: int) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{self.name}: expected a tensor of embeddings, or a tuple of these, got "
                f"{type(x).__name__}; get_embedding may pick it from what the encoder returns"
            )
        if not x.is_floating_point():
            raise TypeError(f"{self.name}: expected floating-point embeddings, got {x.dtype}")
        if x.dim() < 2 or x.shape[0] != rows:
            raise ValueError(
                f"{self.name}: expected embeddings of shape [{rows}, width] for a chunk of "
                f"{rows} samples, got shape {list(x.shape)}"
            )

    def _check_alike(self, outputs: tuple[Tensor, ...]) -> None:
        expected, got = (
            ", ".join(f"{list(x.shape[1:])} {x.dtype}" for x in tensors)
            for tensors in (self.embeddings, outputs)
        )
        if got != expected:
            raise ValueError(
                f"{self.name}: expected embeddings of one shape and dtype from all chunks, "
                f"{expected} a sample, got {got}"
            )

    def _check_frozen(self) -> None:
        module = self._encoder  # of a model whose method it is, this may be the frozen part
        if isinstance(module, nn.Module) and any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"{self.name}: expected embeddings that require grad, as its parameters do, got "
                "none that does; does it run under torch.no_grad() or detach them?"
            )

    def _check_replayed(self, outputs: tuple[Tensor, ...]) -> None:
        for whole, output in zip(self.embeddings, outputs, strict=True):
            if not (self._must_check or readable(output)):
                continue
            first = whole.detach()[self.chunks[0].rows].to(output.device).float()
            error, size = (output.detach().float() - first).norm(), first.norm()
            # A first encoding that is not finite has nothing to be repeated.
            if not ((error <= REPLAY_TOLERANCE * size) | ~size.isfinite()):
                raise RuntimeError(
                    f"{self.name}: expected the same embeddings from encoding a chunk again, got "
                    f"others, {error / size:.0%} away; random numbers must come from torch's "
                    "global generators, state must live in buffers, and inputs must stay as they "
                    "are"
                )
