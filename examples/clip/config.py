"""The settings of a run, and their defaults."""

from dataclasses import dataclass, fields
from typing import Any

from examples.clip.glyphs import SIZE
from examples.common.device import pick_device, pick_precision
from examples.common.settings import Checked, setting

WIDEST_SCALE = 100.0  # of the logits, as in CLIP
START = {"clip": (1 / 0.07, 0.0), "siglip": (10.0, -10.0)}  # scale and bias, of the two papers


@dataclass(frozen=True)
class Config(Checked):
    """Everything that decides the weights; a checkpoint resumes under an equal one only."""

    split: str = setting(
        "test", "what is held out; validation: to choose settings on", ("test", "validation")
    )
    characters: int = setting(0, "only so many, those that most fonts have; 0: all")
    loss: str = setting("clip", "of the pairs of a batch", ("clip", "siglip"))
    gather: str = setting("all", "how several processes share a loss", ("all", "ring"))
    epochs: int = setting(45, "passes over the training pictures")
    batch_size: int = setting(4096, "pairs a step, of all processes together")
    chunk: int = setting(256, "pairs encoded at a time, by gradient caching; 0: the whole batch")
    learning_rate: float = setting(1e-2, "peak learning rate of AdamW")
    weight_decay: float = setting(1.0, "of weight matrices; biases, norms and scale have none")
    warmup: float = setting(0.1, "fraction of the steps in which the learning rate rises")
    dim: int = setting(256, "width of the embeddings")
    width: int = setting(16, "channels of the image tower's first stage")
    stages: int = setting(3, "of the image tower; each one doubles the channels")
    seed: int = setting(0, "of weights, data order and views")
    precision: str = setting(
        "auto",
        "bfloat16: autocast's type; float64: to compare processes",
        ("auto", "float32", "float64", "bfloat16"),
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto: a GPU where there is one")

    def __post_init__(self) -> None:
        for name in ("epochs", "width", "stages"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("batch_size", "dim"):
            self._check(name, getattr(self, name) >= 2, "at least 2")
        for name in ("characters", "chunk"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("learning_rate", 0 < self.learning_rate < float("inf"), "a positive number")
        self._check("weight_decay", 0 <= self.weight_decay < float("inf"), "at least 0")
        self._check("warmup", 0 <= self.warmup < 1, "a share in [0, 1)")
        self._check("seed", 0 <= self.seed < 2**63, "at least 0 and below 2^63")
        fits = 2 ** min(self.stages, 64) <= SIZE
        self._check("stages", fits, f"a pixel left of {SIZE}, which each halves")


QUICK: dict[str, Any] = {
    "characters": 400, "epochs": 2, "batch_size": 512, "width": 8, "dim": 64
}  # fmt: skip


def make_config(given: dict[str, Any], *, quick: bool = False) -> Config:
    """The defaults, then ``quick``'s, then what was ``given``; ``auto`` is resolved."""
    known = {field.name for field in fields(Config)}
    if unknown := given.keys() - known:
        raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
    chosen = {**(QUICK if quick else {}), **given}
    device = pick_device(chosen.get("device", "auto"))
    precision = pick_precision(chosen.get("precision", "auto"), device)
    return Config(**{**chosen, "device": str(device), "precision": precision})
