"""Small runs of the SimCLR example."""

import torch

from examples.simclr.config import make_config
from examples.simclr.train import Trainer
from tools.soak import differences

SMALL = {"epochs": 4, "batch_size": 32, "width": 4, "stages": 2, "projection": 8, "device": "cpu"}


def make_trainer(groups=None, **settings):
    images = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Trainer(make_config({**SMALL, **settings}), images, groups)


def outcome(trainer):
    """Everything but the time that it took."""
    return {name: value for name, value in trainer.state_dict().items() if name != "seconds"}


def finished(path, **settings):
    trainer = make_trainer(**settings)
    trainer.run(path)
    return outcome(trainer)


def assert_same(actual, expected):
    """Bitwise, through nested containers."""
    assert not list(differences(actual, expected))
