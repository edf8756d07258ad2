"""The settings of a run, and their defaults for each data set."""

from dataclasses import dataclass, field, fields
from typing import Any

from examples.common.device import pick_device, pick_precision


def _setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """Everything that decides the weights; a checkpoint resumes under an equal one only."""

    data: str = _setting("digits", "data set", ("digits", "glyphs", "cifar10", "stl10", "folder"))
    image_size: int = _setting(8, "images are resized to this many pixels a side (digits: 8)")
    epochs: int = _setting(160, "passes over the training images")
    batch_size: int = _setting(640, "pairs of views a step; the loss sees twice as many rows")
    chunk: int = _setting(0, "images encoded at a time, by gradient caching; 0: the whole batch")
    loss: str = _setting(
        "cl_kernels", "eager holds the matrix of similarities", ("cl_kernels", "eager")
    )
    optimizer: str = _setting("adamw", "LARS is for large batches", ("adamw", "lars"))
    learning_rate: float = _setting(2e-3, "peak; LARS: 0.3 x batch_size / 256 unless given")
    weight_decay: float = _setting(1e-4, "of weight matrices; biases and norms have none")
    warmup: float = _setting(0.1, "fraction of the steps in which the learning rate rises")
    temperature: float = _setting(0.5, "of the NT-Xent loss")
    encoder: str = _setting(
        "small", "ResNets take torchvision or timm", ("small", "resnet18", "resnet50")
    )
    norm: str = _setting("batch", "group: no statistics of the batch or chunk", ("batch", "group"))
    width: int = _setting(32, "channels of the small encoder's first stage")
    stages: int = _setting(3, "stages of the small encoder; each one doubles the channels")
    projection: int = _setting(64, "width of the embeddings that the loss sees")
    seed: int = _setting(0, "of weights, data order and augmentations")
    precision: str = _setting(
        "auto",
        "autocast's type; auto: bfloat16 on a GPU that has it",
        ("auto", "float32", "bfloat16"),
    )
    device: str = _setting("auto", "cpu, cuda, cuda:1, ...; auto: a GPU where there is one")

    def __post_init__(self) -> None:
        for name in ("image_size", "epochs", "batch_size", "width", "stages", "projection"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if 2 ** min(self.stages - 1, 64) > self.image_size:
            raise ValueError(
                f"stages must leave a pixel of image_size {self.image_size}, which each after the "
                f"first halves, got {self.stages}"
            )
        if self.chunk < 0:
            raise ValueError(f"chunk must not be negative, got {self.chunk}")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2^63, got {self.seed}")


# Natural images: colour views need more negatives, a wider network and a sharper softmax.
_NATURAL: dict[str, Any] = {"batch_size": 1024, "width": 64, "stages": 4, "projection": 128}
PRESETS: dict[str, dict[str, Any]] = {
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
    "cifar10": {**_NATURAL, "image_size": 32, "epochs": 200, "temperature": 0.5},
    "stl10": {**_NATURAL, "image_size": 96, "epochs": 100, "temperature": 0.2},
    "folder": {**_NATURAL, "image_size": 96, "epochs": 100, "temperature": 0.2},
}
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 256, "width": 8}
LARS_RATE, LARS_DECAY = 0.3 / 256, 1e-6  # SimCLR's (section 2.2); the rate for each pair of a batch


def make_config(given: dict[str, Any], *, quick: bool = False) -> Config:
    """The data set's preset, then ``quick``'s, then what was ``given``; ``auto`` is resolved."""
    known = {setting.name for setting in fields(Config)}
    if unknown := given.keys() - known:
        raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
    name = given.get("data", "digits")
    if name not in PRESETS:
        raise ValueError(f"data must be one of {', '.join(PRESETS)}; got {name!r}")
    chosen = {"data": name, **PRESETS[name], **(QUICK if quick else {})}
    if given.get("optimizer") == "lars":
        batch_size = {"batch_size": Config.batch_size, **chosen, **given}["batch_size"]
        chosen |= {"weight_decay": LARS_DECAY, "learning_rate": LARS_RATE * batch_size}
    chosen |= given
    device = pick_device(chosen.get("device", "auto"))
    precision = pick_precision(chosen.get("precision", "auto"), device)
    return Config(**{**chosen, "device": str(device), "precision": precision})
