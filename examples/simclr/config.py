"""The settings of a run, and their defaults for each data set."""

from dataclasses import dataclass
from typing import Any

from examples.common.images.config import NATURAL, ImageConfig, Presets, resolve
from examples.common.settings import setting


@dataclass(frozen=True)
class Config(ImageConfig):
    """Everything that decides the weights; a checkpoint resumes under an equal one only."""

    batch_size: int = setting(640, "pairs of views a step; the loss sees twice as many rows")
    chunk: int = setting(0, "images encoded at a time, by gradient caching; 0: the whole batch")
    loss: str = setting(
        "cl_kernels", "eager holds the matrix of similarities", ("cl_kernels", "eager")
    )
    temperature: float = setting(0.5, "of the NT-Xent loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 0:
            raise ValueError(f"chunk must not be negative, got {self.chunk}")


PRESETS: Presets = {
    "digits": {},
    "glyphs": {
        "image_size": 24,
        "epochs": 40,
        "batch_size": 4096,
        "chunk": 256,
        "norm": "group",
        "learning_rate": 4e-3,
        "temperature": 0.1,
        "width": 8,
        "stages": 4,
        "projection": 128,
    },
    "cifar10": {**NATURAL, "image_size": 32, "epochs": 200, "temperature": 0.5},
    "stl10": {**NATURAL, "image_size": 96, "epochs": 100, "temperature": 0.2},
    "folder": {**NATURAL, "image_size": 96, "epochs": 100, "temperature": 0.2},
}
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 256, "width": 8}


def make_config(given: dict[str, Any], *, quick: bool = False) -> Config:
    """The data set's preset, then ``quick``'s, then what was ``given``; ``auto`` is resolved."""
    return resolve(Config, given, PRESETS, QUICK if quick else {})
