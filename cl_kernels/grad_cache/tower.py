"""One encoder on one input: the embeddings of the whole batch, and the way back chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_kernels.checks import readable
from cl_kernels.grad_cache.chunks import Chunk, as_index, take, tensors
from cl_kernels.grad_cache.replay import RandomStates, autocast_disabled, trained_leaves
from cl_kernels.grad_cache.wrappers import ddp_parts, module_of, no_sync

# Kernels with and without a graph differ by roundings; other random numbers differ by more.
REPLAY_TOLERANCE = 0.05

GetEmbedding = Callable[[Any, Any], Any]
Propagate = Callable[[list[Tensor], list[Tensor]], None]


class Tower:
    """An encoder with its input, cut into chunks.

    Args:
        index: The input's number among those of the call.
        encoder, inputs, chunks: What encodes, and what of.
        get_embedding, device, embedding_device: As for ``GradCache``.
        must_check: That encoding is replayed, even if that waits for a GPU.
    """

    def __init__(
        self,
        index: int,
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
        self.name, self.input_name = f"encoders[{index}]", f"inputs[{index}]"
        if any(ddp.static_graph for ddp in self.ddp):
            raise ValueError(
                f"{self.name}: expected DistributedDataParallel without static_graph, as some "
                "backward passes leave out the reduction, got one with it"
            )
        self.chunks = chunks
        self.requiring: list[bool] = []  # grad, of the tensors that the encoder returns
        self.leaves: list[Tensor] = []  # all that may be trained by it
        self._encoding: list[Tensor] = []  # parameters that encode
        self._encoder = encoder
        self._inputs = inputs
        self._get_embedding = get_embedding
        self._device = device
        self._embedding_device = embedding_device
        self._must_check = must_check
        self._random_states = RandomStates(len(chunks))
        self._first: tuple[Tensor, ...] = ()  # embeddings of the first chunk, to be compared

    @property
    def trained(self) -> bool:
        return any(self.requiring)

    def encode_all(self) -> tuple[Tensor, ...]:
        """For each tensor that the encoder returns, that of all rows, without a graph.

        The first chunk gets a graph, dropped at once, which tells what is trained: a frozen
        encoder runs only once.
        """
        with no_sync(self.ddp):
            self._random_states.save(0)
            outputs = self._encode(self.chunks[0])
            self._look_at(outputs)
            wholes = tuple(self._whole_like(x) for x in outputs)
            self._put(self.chunks[0], outputs, wholes)
            del outputs
            with torch.no_grad():
                for number, chunk in enumerate(self.chunks[1:], 1):
                    self._random_states.save(number)
                    self._put(chunk, self._encode(chunk), wholes)
        return wholes

    def backward(
        self, number: int, gradients: Sequence[Tensor | None], propagate: Propagate
    ) -> None:
        """Encodes a chunk again and propagates its part of the embeddings' gradients.

        Without gradients it only encodes, for the sake of buffers.
        """
        chunk = self.chunks[number]
        self._random_states.restore(number)
        outputs = self._encode(chunk)
        if number == 0:
            self._check_replayed(outputs)
        roots, seeds = [], []
        for output, whole in zip(outputs, gradients, strict=True):
            if whole is not None:
                roots.append(output)
                seeds.append(whole[as_index(chunk.rows, whole.device)].to(output.device))
        if roots:
            with autocast_disabled():
                propagate(roots, seeds)

    def read(self) -> Iterator[Tensor]:
        """What the second encoding reads again: inputs, and parameters as far as they are known."""
        yield from tensors(self._inputs)
        yield from self._encoding

    def describe(self, x: Tensor) -> str:
        """The name of something that was read."""
        if any(x is part for part in tensors(self._inputs)):
            return self.input_name
        named = () if self.module is None else self.module.named_parameters()
        names = [f"parameter {name!r}" for name, parameter in named if parameter is x]
        return f"{self.name}: {next(iter(names), f'a parameter of shape {list(x.shape)}')}"

    def _look_at(self, outputs: tuple[Tensor, ...]) -> None:
        """Tells from the first chunk's outputs what is trained, and what a replay must equal."""
        self.requiring = [x.requires_grad for x in outputs]
        if not torch.is_grad_enabled():
            return
        if not self.trained:
            self._check_frozen()
            return
        if isinstance(self._encoder, nn.Module):
            self._encoding = list(self._encoder.parameters())
        else:  # perhaps a part of a module, beside which others may change
            self._encoding = trained_leaves(outputs)
        known = self._encoding
        if self.module is not None and self.module is not self._encoder:
            known = self.module.parameters()
        self.leaves = [x for x in known if x.requires_grad]
        if self._must_check or any(map(readable, outputs)):
            self._first = tuple(x.detach().clone() for x in outputs)

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

    def _put(self, chunk: Chunk, outputs: tuple[Tensor, ...], wholes: tuple[Tensor, ...]) -> None:
        self._check_alike(outputs, wholes)
        with torch.no_grad():
            for whole, output in zip(wholes, outputs, strict=True):
                whole[as_index(chunk.rows, whole.device)] = output.to(whole.device)

    def _whole_like(self, x: Tensor) -> Tensor:
        shape = sum(chunk.size for chunk in self.chunks), *x.shape[1:]
        return torch.empty(shape, dtype=x.dtype, device=self._embedding_device or x.device)

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

    def _check_alike(self, outputs: tuple[Tensor, ...], wholes: tuple[Tensor, ...]) -> None:
        expected, got = (
            ", ".join(f"{list(x.shape[1:])} {x.dtype}" for x in found)
            for found in (wholes, outputs)
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
        for first, output in zip(self._first, outputs, strict=False):
            error, size = (output.detach().float() - first.float()).norm(), first.float().norm()
            # A first encoding that is not finite has nothing to be repeated.
            if not ((error <= REPLAY_TOLERANCE * size) | ~size.isfinite()):
                raise RuntimeError(
                    f"{self.name}: expected the same embeddings from encoding a chunk again, got "
                    f"others, {error / size:.0%} away; random numbers must come from torch's "
                    "global generators, state must live in buffers, and inputs must stay as they "
                    "are"
                )
