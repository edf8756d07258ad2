"""The settings that every example on images has, and how they are made from presets."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from examples.common.device import pick_device, pick_precision
from examples.common.settings import setting

LARS_RATE, LARS_DECAY = 0.3 / 256, 1e-6  # SimCLR's (section 2.2); the rate for each pair of a batch

# Natural images: colour views need more negatives and a wider network.
NATURAL: dict[str, Any] = {"batch_size": 1024, "width": 64, "stages": 4, "projection": 128}


@dataclass(frozen=True)
class ImageConfig:
    """Everything that decides the weights; a checkpoint resumes under an equal one only."""

    data: str = setting("digits", "data set", ("digits", "glyphs", "cifar10", "stl10", "folder"))
    image_size: int = setting(8, "images are resized to this many pixels a side (digits: 8)")
    epochs: int = setting(160, "passes over the training images")
    batch_size: int = setting(640, "pairs of views a step")
    optimizer: str = setting("adamw", "LARS is for large batches", ("adamw", "lars"))
    learning_rate: float = setting(2e-3, "peak; LARS: 0.3 x batch_size / 256 unless given")
    weight_decay: float = setting(1e-4, "of weight matrices; biases and norms have none")
    warmup: float = setting(0.1, "fraction of the steps in which the learning rate rises")
    temperature: float = setting(0.5, "of the loss")
    encoder: str = setting(
        "small", "ResNets take torchvision or timm", ("small", "resnet18", "resnet50")
    )
    norm: str = setting("batch", "group: no statistics of the batch or chunk", ("batch", "group"))
    width: int = setting(32, "channels of the small encoder's first stage")
    stages: int = setting(3, "stages of the small encoder; each one doubles the channels")
    projection: int = setting(64, "width of the embeddings that the loss sees")
    seed: int = setting(0, "of weights, data order and augmentations")
    precision: str = setting(
        "auto",
        "autocast's type; auto: bfloat16 on a GPU that has it",
        ("auto", "float32", "bfloat16"),
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto: a GPU where there is one")

    def __post_init__(self) -> None:
        for name in ("image_size", "epochs", "batch_size", "width", "stages", "projection"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if 2 ** min(self.stages - 1, 64) > self.image_size:
            raise ValueError(
                f"stages must leave a pixel of image_size {self.image_size}, which each after the "
                f"first halves, got {self.stages}"
            )
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2^63, got {self.seed}")


C = TypeVar("C", bound=ImageConfig)
Presets = dict[str, dict[str, Any]]  # of each data set


def resolve(kind: type[C], given: dict[str, Any], presets: Presets, quick: dict[str, Any]) -> C:
    """The data set's preset, then ``quick``, then what was ``given``; ``auto`` is resolved."""
    known = {setting.name for setting in fields(kind)}
    if unknown := given.keys() - known:
        raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
    name = given.get("data", "digits")
    if name not in presets:
        raise ValueError(f"data must be one of {', '.join(presets)}; got {name!r}")
    chosen = {"data": name, **presets[name], **quick}
    if given.get("optimizer") == "lars":
        batch_size = {"batch_size": kind.batch_size, **chosen, **given}["batch_size"]
        chosen |= {"weight_decay": LARS_DECAY, "learning_rate": LARS_RATE * batch_size}
    chosen |= given
    device = pick_device(chosen.get("device", "auto"))
    precision = pick_precision(chosen.get("precision", "auto"), device)
    return kind(**{**chosen, "device": str(device), "precision": precision})
