"""What the tests of the CLIP example share: a small run."""

from examples.clip import data
from examples.clip.config import make_config
from examples.clip.train import Trainer
from examples.common.ranks import ALONE

SMALL = {
    "characters": 200, "batch_size": 256, "chunk": 64, "epochs": 3, "width": 4, "stages": 2,
    "dim": 16, "device": "cpu",
}  # fmt: skip


def config(**settings):
    return make_config({**SMALL, **settings})


def make_trainer(ranks=ALONE, **settings):
    settings = config(**settings)
    return Trainer(settings, data.load(settings), ranks)


def arguments(out, **settings):
    named = {**SMALL, "out": out, **settings}
    return [x for name, value in named.items() for x in ("--" + name.replace("_", "-"), str(value))]


def outcome(trainer):
    """Everything but the time that it took."""
    return {name: value for name, value in trainer.state_dict().items() if name != "seconds"}
