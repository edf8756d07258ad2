"""Each method's networks and loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_kernels import decoupled, negative_cosine, supcon, vicreg
from cl_kernels.memory import MomentumEncoder, Queue, cosine_momentum
from examples.common.images.learner import Learner, Views
from examples.common.images.networks import Tower, features_of, mlp
from examples.methods.catalogue import METHODS, Method
from examples.methods.config import Config
from examples.moco.model import MoCoV2, MoCoV3, Momentum, v2_head
from examples.simclr.loss import make_loss

Objective = Callable[[Tensor, Tensor, Views], Tensor]  # embeddings [B, D] of both views


def make_learner(config: Config, encoder: nn.Module, steps: int) -> Learner:
    """The method of ``config`` around ``encoder``, for a run of so many steps."""
    method = METHODS[config.method]
    parts = Parts(config, method, encoder, steps)
    make = {"moco-v2": _moco_v2, "moco-v3": _moco_v3, "byol": _byol, "simsiam": _simsiam}
    return make.get(config.method, _joint)(parts)


@dataclass(frozen=True)
class Parts:
    """What the catalogue's numbers make around an encoder."""

    config: Config
    method: Method
    encoder: nn.Module
    steps: int

    @property
    def output(self) -> int:
        times = self.method.output
        return self.config.projection if times is None else self._width(times)

    def head(self) -> nn.Module:
        hidden = map(self._width, self.method.hidden)
        widths = features_of(self.encoder), *hidden, self.output
        return mlp(widths, self.config.norm, self.method.last_norm)

    def predictor(self, last_norm: bool = False) -> nn.Module:
        assert self.method.predictor is not None
        widths = self.output, self._width(self.method.predictor), self.output
        return mlp(widths, self.config.norm, last_norm)

    def momentum(self) -> Momentum:
        base = self.method.momentum
        assert base is not None
        return cosine_momentum(base, self.steps) if self.method.rising else base

    def temperature(self) -> float:
        assert self.method.temperature is not None
        return self.method.temperature

    def _width(self, times: float) -> int:
        return round(times * features_of(self.encoder))


def _moco_v2(parts: Parts) -> Learner:
    size = parts.method.queue * parts.config.batch_size
    return MoCoV2(
        parts.encoder,
        v2_head(features_of(parts.encoder), parts.output),
        parts.momentum(),
        Queue(size, parts.output, labels=True),
        parts.temperature(),
        parts.method.key_parts,
    )


def _moco_v3(parts: Parts) -> Learner:
    predictor = parts.predictor(last_norm=True)
    return MoCoV3(parts.encoder, parts.head(), predictor, parts.momentum(), parts.temperature())


def _byol(parts: Parts) -> Learner:
    return BYOL(parts.encoder, parts.head(), parts.predictor(), parts.momentum())


def _simsiam(parts: Parts) -> Learner:
    return SimSiam(parts.encoder, parts.head(), parts.predictor())


def _joint(parts: Parts) -> Learner:
    return Joint(parts.encoder, parts.head(), objective(parts.method))


def objective(method: Method) -> Objective:
    """The loss of a method that embeds both views by one network and compares them."""
    if method.loss == "vicreg":
        return lambda first, second, views: vicreg(first, second)
    assert method.temperature is not None
    temperature = method.temperature
    if method.loss == "decoupled":
        return lambda first, second, views: decoupled(first, second, temperature)
    if method.loss == "nt_xent":
        compute = make_loss("cl_kernels", temperature)
        return lambda first, second, views: compute(first, second, views.ids)
    return lambda first, second, views: supcon(
        torch.stack([first, second], 1), views.labels, temperature=temperature
    )


class Joint(Learner):
    """Both views in one batch through one network, and an objective of their embeddings."""

    def __init__(self, encoder: nn.Module, head: nn.Module, objective: Objective) -> None:
        super().__init__(encoder, head)
        self.objective = objective

    def loss(self, views: Views) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first, second = self(torch.cat([views.first, views.second])).chunk(2)
        return self.objective(first, second, views), (first, second)


class SimSiam(Learner):
    """A prediction from each view against the embedding of the other, which gets no gradient.

    Chen and He, "Exploring Simple Siamese Representation Learning" (2021), algorithm 1.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, predictor: nn.Module) -> None:
        super().__init__(encoder, head)
        self.predictor = predictor

    def loss(self, views: Views) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first, second = self(views.first), self(views.second)
        one = negative_cosine(self.predictor(first), second)
        other = negative_cosine(self.predictor(second), first)
        return (one + other) / 2, (first, second)


class BYOL(Learner):
    """A prediction from each view against the other's embedding by a momentum encoder.

    Grill et al., "Bootstrap Your Own Latent" (2020), equations 2 and following.
    """

    def __init__(
        self, encoder: nn.Module, head: nn.Module, predictor: nn.Module, momentum: Momentum
    ) -> None:
        super().__init__(encoder, head)
        self.predictor = predictor
        self.target = MomentumEncoder(Tower(encoder, head), momentum)

    def loss(self, views: Views) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first, second = self(views.first), self(views.second)
        targets = self.target(views.second), self.target(views.first)
        one, other = (
            negative_cosine(self.predictor(online), target, squared_distance=True)
            for online, target in zip((first, second), targets, strict=True)
        )
        return one + other, (first, second)

    def after_step(self) -> None:
        self.target.update()
