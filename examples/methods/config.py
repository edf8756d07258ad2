"""The settings that all methods share."""

from dataclasses import dataclass
from typing import Any

from examples.common.images.config import ImageConfig, Presets, resolve
from examples.common.settings import setting
from examples.methods.catalogue import METHODS


@dataclass(frozen=True)
class Config(ImageConfig):
    """Everything but the method's own numbers, which stand in the catalogue."""

    method: str = setting("simclr", "which one", tuple(METHODS))
    batch_size: int = setting(256, "pairs of views a step")


PRESETS: Presets = {
    "digits": {"epochs": 50},
    "glyphs": {"image_size": 24, "epochs": 3, "width": 8, "stages": 4},
}
QUICK: dict[str, Any] = {"epochs": 1, "width": 4}


def make_config(given: dict[str, Any], *, quick: bool = False) -> Config:
    """The data set's preset, then ``quick``'s, then what was ``given``; ``auto`` is resolved."""
    return resolve(Config, given, PRESETS, QUICK if quick else {})
