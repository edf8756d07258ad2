"""The training loop: in-batch negatives, then mined ones besides, one checkpoint an epoch."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from cl_kernels import PairFilter, info_nce
from cl_kernels.grad_cache import GradCache
from examples.common import checkpoint
from examples.common.fingerprint import fingerprint
from examples.common.guards import check_finite, check_finite_weights
from examples.common.ranks import ALONE, Ranks
from examples.common.run import TrainingRun
from examples.sbert.config import Config
from examples.sbert.data import Pairs
from examples.sbert.encoder import TextEncoder, make_encoder
from examples.sbert.mining import filled, mine


class Trainer(TrainingRun):
    """A run that can be saved and resumed between any two epochs.

    Args:
        config: The settings of the run.
        pairs: N pairs to train on.
        monitor: Called with the encoder before training and after each epoch; its numbers join
            the history.
        ranks: This process among those that share the batches. Each draws the whole batch from one
            seed, and encodes its own part of it.
    """

    kind, trained = "SBERT", "encoder"
    config: Config

    def __init__(
        self,
        config: Config,
        pairs: Pairs,
        monitor: Callable[[TextEncoder], dict[str, float]] = lambda encoder: {},
        ranks: Ranks = ALONE,
    ) -> None:
        steps = len(pairs) // config.batch_size  # the incomplete batch is left
        if steps == 0:
            raise ValueError(
                f"batch_size: expected at most the {len(pairs)} training pairs, "
                f"got {config.batch_size}"
            )
        super().__init__(config, steps, ranks)
        self.pairs = pairs
        self.fingerprint = fingerprint([*pairs.queries, *pairs.documents, pairs.groups])
        self.monitor = monitor
        self.encoder = make_encoder(config, [*pairs.queries, *pairs.documents])
        check_encoder(self.encoder)
        self.queries = self.encoder.tokenize(pairs.queries)
        self.documents = self.encoder.tokenize(pairs.documents)
        self.encode = ranks.wrap(self.encoder)
        self.cache = GradCache(self.encode, self._contrast, chunk_size=config.chunk or len(pairs))
        self.optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=config.learning_rate, weight_decay=0.0
        )
        self.scheduler = LambdaLR(self.optimizer, self._rate)
        self.before: dict[str, float] = {}  # the monitor's numbers before training

    @property
    def epochs(self) -> int:
        """Of both stages."""
        return self.config.epochs + self.config.hard_epochs

    def _rate(self, step: int) -> float:
        """Of the peak rate; each stage has a linear warm-up, then a cosine to zero."""
        config = self.config
        length, peak = config.epochs * self.steps, 1.0
        if step >= length:
            step, length = step - length, max(1, config.hard_epochs * self.steps)
            peak = config.hard_learning_rate / config.learning_rate
        rising = max(1, round(config.warmup * length))
        if step < rising:
            return peak * (step + 1) / rising
        return peak * (1 + math.cos(math.pi * (step - rising) / max(1, length - rising))) / 2

    def train_epoch(self, after_step: Callable[[float], Any] = lambda loss: None) -> None:
        """One pass over the pairs in a new order, with freshly mined negatives if it is time."""
        began = time.perf_counter()
        values: dict[str, float] = {"learning_rate": float(self.scheduler.get_last_lr()[0])}
        negatives = None
        if self.epoch >= self.config.epochs:
            mined = self._mine()
            values["queries_short_of_negatives"] = float(len(mined.shortfall))
            negatives = filled(mined)
        self.encoder.train()
        order = torch.randperm(len(self.pairs), generator=self.order)
        batches = order.split(self.config.batch_size)[: self.steps]
        total = 0.0
        with self._own_dropout():
            for chosen in batches:
                loss = self.train_step(chosen, None if negatives is None else negatives[chosen])
                total += loss
                after_step(loss)
        step, last = self.scheduler.last_epoch, batches[-1].tolist()
        check_finite_weights(self.encoder, step, last, self.saved)
        values["loss"] = total / self.steps
        self.seconds += time.perf_counter() - began
        self.history.append(values | self.monitor(self.encoder))

    def train_step(self, chosen: Tensor, negatives: Tensor | None = None) -> float:
        """One step on the pairs ``chosen`` [B] with ``negatives`` [B, K]; returns the loss.

        Raises:
            NonFiniteLoss: The loss is not finite; the weights are as before.
        """
        own = chosen[self.own]
        texts = [self.queries[own], self.documents[own]]
        if negatives is not None:
            texts.append(self.documents[negatives[self.own].flatten()])
        self.optimizer.zero_grad()
        try:
            with self._autocast():
                loss = self._backward([ids.to(self.device) for ids in texts], own)
        except FloatingPointError:  # from the gradient cache
            loss = math.nan
        check_finite(loss, self.scheduler.last_epoch + 1, chosen.tolist(), self.saved)
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def _backward(self, texts: list[Tensor], chosen: Tensor) -> float:
        groups = self.pairs.groups[chosen].to(self.device)
        if self.config.chunk:
            return self.cache.step(*texts, groups=groups).item()
        loss = self._contrast(*(self.encode(ids) for ids in texts), groups=groups)
        loss.backward()
        return loss.item()

    def _contrast(
        self, query: Tensor, document: Tensor, negatives: Tensor | None = None, *, groups: Tensor
    ) -> Tensor:
        B, dim = query.shape
        return info_nce(
            query,
            document,
            None if negatives is None else negatives.view(B, -1, dim),
            temperature=self.config.temperature,
            in_batch_negatives=True,
            where=PairFilter(groups, groups, "different"),
            gather="all",
        )

    @contextmanager
    def _own_dropout(self) -> Iterator[None]:
        """Each process leaves out tokens of its own; all else they draw alike."""
        several = self.ranks.size > 1
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=several):
            if several:
                torch.manual_seed(hash((self.config.seed, self.epoch, self.ranks.rank)) % 2**63)
            yield

    def _mine(self) -> Any:
        queries, documents = map(self.encoder.encode, (self.queries, self.documents))
        return mine(queries, documents, self.pairs, self.config)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "training_pairs": len(self.pairs),
            "texts_sha256": self.fingerprint,
        }

    def state_dict(self) -> dict[str, Any]:
        random = checkpoint.random_state(self.device)
        return super().state_dict() | {"random": random, "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.before = state["before"]
        checkpoint.set_random_state(self.device, state["random"])

    def disk_bytes(self) -> int:
        """Room for two checkpoints, the old and the new, and for what is exported."""
        weights = sum(weight.nbytes for weight in self.encoder.state_dict().values())
        embeddings = 4 * len(self.pairs) * self.config.dim
        return (2 * 3 + 1) * weights + 2 * embeddings + 2**24  # AdamW keeps two numbers a weight

    def run(self, path: Path) -> None:
        if self.epoch == 0:
            self.before = self.monitor(self.encoder)
        super().run(path)


def check_encoder(encoder: TextEncoder) -> None:
    """Before training: an encoder gives one embedding for each text.

    Raises:
        ValueError: It gives anything else.
    """
    with torch.no_grad():
        device = next(encoder.parameters()).device
        found = encoder(encoder.tokenize(["a question", "its answer"]).to(device))
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 2:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"encoder: expected embeddings of shape [2, dim] for 2 texts, got {got}")
    if not torch.isfinite(found).all():
        raise ValueError("encoder: expected finite embeddings, got NaN or infinity")
