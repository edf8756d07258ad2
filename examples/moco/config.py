"""The settings of a run, and their defaults for each data set and version."""

from dataclasses import dataclass
from typing import Any

from examples.common.images.config import NATURAL, ImageConfig, Presets, resolve
from examples.common.settings import setting


@dataclass(frozen=True)
class Config(ImageConfig):
    """Everything that decides the weights; a checkpoint resumes under an equal one only."""

    epochs: int = setting(100, "passes over the training images")
    batch_size: int = setting(256, "pairs of views a step")
    temperature: float = setting(0.2, "of the InfoNCE loss")
    version: str = setting("v2", "v2: a queue; v3: keys of the batch, a predictor", ("v2", "v3"))
    momentum: float = setting(0.99, "of the key encoder; v3 raises it to 1 by a cosine")
    queue: int = setting(1024, "keys of earlier batches; v3 has none, 0")
    key_parts: int = setting(8, "v2 shuffles keys and normalises them in so many parts; v3: 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {self.momentum}")
        if self.version == "v3":
            if self.queue != 0:
                raise ValueError(f"queue must be 0 in v3, which has none, got {self.queue}")
            if self.key_parts != 1:
                raise ValueError(f"key_parts must be 1 in v3, got {self.key_parts}")
            return
        if self.queue < 1:
            raise ValueError(f"queue must be at least 1 in v2, got {self.queue}")
        if not 1 <= self.key_parts <= max(1, self.batch_size // 2):
            raise ValueError(
                f"key_parts must leave two of {self.batch_size} images in each part, "
                f"got {self.key_parts}"
            )


_LARGE: dict[str, Any] = {**NATURAL, "batch_size": 256, "momentum": 0.999, "queue": 65536}
PRESETS: Presets = {
    "digits": {},
    "glyphs": {
        "image_size": 24,
        "epochs": 10,
        "width": 8,
        "stages": 4,
        "projection": 128,
        "queue": 4096,
    },
    # The authors' settings for CIFAR-10, and for ImageNet.
    "cifar10": {**_LARGE, "image_size": 32, "epochs": 200, "momentum": 0.99, "queue": 4096},
    "stl10": {**_LARGE, "image_size": 96, "epochs": 100},
    "folder": {**_LARGE, "image_size": 96, "epochs": 100},
}
V3: dict[str, Any] = {"queue": 0, "key_parts": 1, "momentum": 0.99}
QUICK: dict[str, Any] = {"epochs": 2, "width": 8}


def make_config(given: dict[str, Any], *, quick: bool = False) -> Config:
    """The data set's preset, v3's, ``quick``'s, then what was ``given``; ``auto`` is resolved."""
    of_version = V3 if given.get("version") == "v3" else {}
    return resolve(Config, given, PRESETS, {**of_version, **(QUICK if quick else {})})
