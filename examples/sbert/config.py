"""The settings of a run, and their defaults for each encoder."""

from dataclasses import dataclass, fields
from typing import Any

from examples.common.device import pick_device, pick_precision
from examples.common.settings import Checked, setting


@dataclass(frozen=True)
class Config(Checked):
    """Everything that decides the weights; a checkpoint resumes under an equal one only."""

    dataset: str = setting("python", "python, a TSV of pairs, or a Hugging Face data set")
    query_column: str = setting("", "of --dataset; may be left out if it has two columns")
    document_column: str = setting("", "of --dataset; may be left out if it has two columns")
    pairs: int = setting(0, "use this many pairs, evenly spread; 0: all")
    heldout: float = setting(0.1, "share of modules (of pairs, with --dataset) held out")
    encoder: str = setting(
        "bag", "bag of tokens or transformer from scratch", ("bag", "transformer", "pretrained")
    )
    model: str = setting("", "start from this checkpoint: a folder, or an installed package")
    dim: int = setting(768, "width of the embeddings")
    vocabulary: int = setting(16000, "tokens at most")
    max_tokens: int = setting(512, "of a text; the rest is cut off")
    layers: int = setting(2, "of the transformer")
    heads: int = setting(4, "of the transformer")
    dropout: float = setting(0.3, "share of a text's tokens (bag) or activations left out")
    epochs: int = setting(8, "with in-batch negatives")
    hard_epochs: int = setting(2, "with mined negatives besides")
    batch_size: int = setting(4096, "pairs a step")
    chunk: int = setting(0, "texts encoded at a time (gradient caching); 0: the whole batch")
    temperature: float = setting(0.05, "of the InfoNCE loss")
    learning_rate: float = setting(5e-3, "peak learning rate of AdamW")
    hard_learning_rate: float = setting(2e-3, "the same with mined negatives")
    warmup: float = setting(0.1, "fraction of a stage in which the learning rate rises")
    negatives: int = setting(4, "mined for each query, again in every epoch")
    range_max: int = setting(20, "negatives are drawn from this many of the hardest")
    relative_margin: float = setting(0.05, "negatives score below (1 - this) times the positive")
    seed: int = setting(0, "of weights, data order, dropout and the draw of negatives")
    precision: str = setting(
        "auto",
        "autocast's type; auto: bfloat16 on a GPU that has it",
        ("auto", "float32", "bfloat16"),
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto: a GPU where there is one")

    def __post_init__(self) -> None:
        for name in ("max_tokens", "layers", "heads", "epochs", "batch_size", "negatives"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("dim", self.dim >= 2, "at least 2")  # it is drawn in the plane
        for name in ("pairs", "hard_epochs", "chunk"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("learning_rate", "hard_learning_rate", "temperature"):
            self._check(name, 0 < getattr(self, name) < float("inf"), "a positive number")
        self._check("relative_margin", 0 <= self.relative_margin < float("inf"), "at least 0")
        self._check("seed", 0 <= self.seed < 2**63, "at least 0 and below 2^63")
        if self.encoder == "transformer":
            divided = self.dim % self.heads == 0
            self._check("dim", divided, f"a multiple of the {self.heads} heads")
        for name in ("warmup", "dropout"):
            self._check(name, 0 <= getattr(self, name) < 1, "a share in [0, 1)")
        self._check("heldout", 0 < self.heldout < 1, "a share in (0, 1)")
        self._check("vocabulary", self.vocabulary >= 256, "at least 256")
        self._check("range_max", self.range_max >= self.negatives, f"at least {self.negatives}")
        if (self.encoder == "pretrained") != bool(self.model):
            raise ValueError(
                f"model: expected one for the pretrained encoder only, got {self.model!r} for the "
                f"{self.encoder} encoder"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "bag": {},
    "transformer": {
        "dim": 256,
        "max_tokens": 128,
        "dropout": 0.1,
        "chunk": 256,
        "batch_size": 1024,
        "learning_rate": 1e-3,
        "hard_learning_rate": 5e-4,
    },
    "pretrained": {
        "max_tokens": 128,
        "epochs": 1,
        "hard_epochs": 1,
        "chunk": 64,
        "batch_size": 1024,
        "learning_rate": 5e-5,
        "hard_learning_rate": 2e-5,
        "negatives": 1,
    },
}
QUICK: dict[str, Any] = {"pairs": 2000, "epochs": 1, "hard_epochs": 1, "batch_size": 256, "dim": 64}


def make_config(given: dict[str, Any], *, quick: bool = False) -> Config:
    """The encoder's preset, then ``quick``'s, then what was ``given``; ``auto`` is resolved."""
    known = {field.name for field in fields(Config)}
    if unknown := given.keys() - known:
        raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
    encoder = given.get("encoder", "pretrained" if given.get("model") else "bag")
    if encoder not in PRESETS:
        raise ValueError(f"encoder: expected one of {', '.join(PRESETS)}, got {encoder!r}")
    chosen = {"encoder": encoder, **PRESETS[encoder], **(QUICK if quick else {}), **given}
    device = pick_device(chosen.get("device", "auto"))
    precision = pick_precision(chosen.get("precision", "auto"), device)
    return Config(**{**chosen, "device": str(device), "precision": precision})
