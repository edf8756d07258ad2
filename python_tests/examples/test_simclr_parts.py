"""Parts of the SimCLR example: metrics checked by hand, data, views, settings."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("kornia")
pytest.importorskip("sklearn")

from examples.common.images import data
from examples.common.images.augment import make_augmentation
from examples.common.images.evaluate import encode, evaluate, linear_probe, retrieval
from examples.simclr.__main__ import main
from examples.simclr.config import PRESETS, make_config
from examples.simclr.model import make_model
from python_tests.examples.simclr_runs import SMALL, assert_same, make_trainer

# Evaluation


def on_circle(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_retrieval_by_hand():
    unit = on_circle(0.0, 10.0, 25.0, 45.0, 70.0)
    labels = torch.tensor([0, 1, 0, 0, 1])
    # Others of each query, nearest first, 1 where relevant, and the average precision:
    # 0: 10 25 45 70 -> 0 1 1 0, (1/2 + 2/3) / 2; 10: 0 25 45 70 -> 0 0 0 1, 1/4
    # 25: 10 45 0 70 -> 0 1 1 0, 7/12; 45: 25 70 10 0 -> 1 0 0 1, (1 + 2/4) / 2
    # 70: 45 25 10 0 -> 0 0 1 0, 1/3
    expected = (7 / 12 + 1 / 4 + 7 / 12 + 3 / 4 + 1 / 3) / 5
    assert retrieval(unit, labels) == pytest.approx((expected, 1 / 5))


def test_retrieval_leaves_out_queries_without_an_answer():
    unit = on_circle(0.0, 10.0, 90.0)
    assert retrieval(unit, torch.tensor([0, 0, 1])) == pytest.approx((1.0, 1.0))


def test_probe_of_separable_features_is_perfect_and_of_noise_is_chance():
    labels = torch.arange(4).repeat(25)
    separable = linear_probe(torch.eye(4)[labels], labels, shots=1)
    assert separable == (1.0, 0.0)
    noise = torch.nn.functional.normalize(torch.randn(100, 8), dim=1)
    chance = linear_probe(noise, labels, shots=5)
    assert chance.mean == pytest.approx(0.25, abs=0.1) and chance.std > 0
    assert linear_probe(noise, labels, shots=5) == chance


def test_scores_ignore_the_length_of_features():
    labels = torch.arange(3).repeat(10)
    features = torch.randn(30, 5)
    scaled = features * torch.rand(30, 1).add(0.5) * 100
    images = data.Images(features, features, labels, ["a", "b", "c"])
    ours, theirs = evaluate(features, images), evaluate(scaled, images)
    for name in ours:
        assert ours[name].mean == pytest.approx(theirs[name].mean, abs=0.02)


def test_features_come_from_the_encoder_in_evaluation_mode():
    model = make_model(make_config({**SMALL, "stages": 3}), channels=1).train()
    images = torch.rand(10, 1, 8, 8)
    features = encode(model, images, batch_size=4)
    assert features.shape == (10, 16)
    assert not features.requires_grad
    torch.testing.assert_close(features, encode(model, images))


# Data and augmentations


def test_digits_split_is_fixed_disjoint_and_has_every_class():
    labels = np.arange(100) % 10
    train, heldout = data._split(labels, 30)
    assert sorted([*train, *heldout]) == list(range(100))
    assert (np.bincount(labels[heldout]) == 3).all()
    images, again = data.load("digits", None, 8), data.load("digits", None, 8)
    assert images.train.shape == (1297, 1, 8, 8) and images.heldout.shape == (500, 1, 8, 8)
    assert images.train.max() == 1 and images.train.min() == 0
    assert_same(images, again)


@pytest.mark.parametrize("name", ["cifar10", "stl10", "folder"])
def test_without_torchvision_the_message_says_what_to_do(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert main(["--data", name, "--root", str(tmp_path)]) == 2
    assert "pip install torchvision" in capsys.readouterr().err


def test_data_errors(tmp_path, capsys):
    assert main(["--data", "cifar10"]) == 2
    assert "needs --root PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--data", "imagenet"])
    assert "invalid choice: 'imagenet'" in capsys.readouterr().err
    with pytest.raises(data.DataError, match="8 x 8; got image_size 16"):
        data.load("digits", None, 16)
    with pytest.raises(data.DataError, match="12 pixels or more; got image_size 8"):
        data.load("glyphs", None, 8)


class FakeCifar:
    """What the example takes of ``torchvision.datasets.CIFAR10``."""

    classes = ("cat", "dog")

    def __init__(self, root, train, download):
        if not download:
            raise RuntimeError("Dataset not found or corrupted.")
        self.data = np.full((12, 32, 32, 3), 255, dtype=np.uint8)
        self.targets = [0, 1] * 6


def test_cifar10_is_only_downloaded_when_told(tmp_path, monkeypatch):
    datasets = SimpleNamespace(CIFAR10=FakeCifar)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets))
    with pytest.raises(data.DataError, match=r"cifar10 was not found whole.*--download"):
        data.load("cifar10", tmp_path, 32)
    images = data.load("cifar10", tmp_path, 16, download=True)
    assert images.train.shape == (12, 3, 16, 16) and images.train.dtype == torch.uint8
    assert images.heldout_labels.tolist() == [0, 1] * 6 and images.classes == ["cat", "dog"]
    assert (data.as_float(images.train) == 1).all()


def test_too_few_heldout_images_are_an_error_before_training(tmp_path, monkeypatch):
    few = data.Images(torch.rand(9, 3, 8, 8), torch.rand(9, 3, 8, 8), torch.arange(9) % 3, [*"abc"])
    monkeypatch.setattr(data, "_folder", lambda *_: few)
    with pytest.raises(data.DataError, match="the smallest with 3 held-out images"):
        data.load("folder", tmp_path, 8)


def test_image_folder_with_and_without_its_own_split(tmp_path):
    try:
        data._torchvision()
    except data.DataError as error:
        pytest.skip(str(error))
    from PIL import Image

    for part in ("one", "two/train", "two/val"):
        for colour, name in enumerate(("black", "white")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(30):
                Image.new("RGB", (20, 12), (255 * colour,) * 3).save(folder / f"{index}.png")
    split = data.load("folder", tmp_path / "one", 8)
    assert split.train.shape == (48, 3, 8, 8) and split.heldout.shape == (12, 3, 8, 8)
    given = data.load("folder", tmp_path / "two", 8)
    assert given.train.shape == given.heldout.shape == (60, 3, 8, 8)
    for images in (split, given):
        white = images.heldout_labels == images.classes.index("white")
        assert (images.heldout[white] == 255).all() and (images.heldout[~white] == 0).all()
    with pytest.raises(data.DataError, match="no class folders with images"):
        data.load("folder", tmp_path / "one" / "black", 8)


@pytest.mark.parametrize(("name", "channels", "size"), [("digits", 1, 8), ("stl10", 3, 96)])
def test_augmentations_differ_between_views_and_repeat_under_a_seed(name, channels, size):
    images = torch.rand(4, channels, size, size)
    augmentation = make_augmentation(name, size)

    def views():
        torch.manual_seed(3)
        return augmentation(images), augmentation(images)

    first, second = views()
    assert first.shape == images.shape and first.isfinite().all()
    assert not torch.equal(first, second)
    assert_same(views(), (first, second))


# Settings


def test_settings_come_from_the_preset_then_quick_then_the_command():
    assert make_config({"data": "stl10"}).image_size == PRESETS["stl10"]["image_size"]
    assert make_config({}, quick=True).epochs < make_config({}).epochs
    assert make_config({"epochs": 17}, quick=True).epochs == 17
    resolved = make_config({})
    assert "auto" not in (resolved.device, resolved.precision)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"chunk": -1}, "chunk must not be negative, got -1"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"device": "meta"}, "device must be cpu or cuda"),
        ({"device": "toaster"}, "device 'toaster' is unknown"),
        ({"data": "mnist"}, "data must be one of digits"),
        ({"colour": 1}, "unknown settings: colour"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(ValueError, match=message):
        make_config(given)


def test_lars_takes_its_own_rate_and_decay_unless_told():
    config = make_config({"optimizer": "lars", "batch_size": 512})
    assert config.learning_rate == pytest.approx(0.6) and config.weight_decay == 1e-6
    assert make_config({"optimizer": "lars", "learning_rate": 0.1}).learning_rate == 0.1


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(ValueError, match="batch_size 101 exceeds 100 images"):
        make_trainer(batch_size=101)
