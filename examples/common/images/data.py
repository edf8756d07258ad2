"""Images to train on, and labelled images that training never sees."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from examples.common.images.glyphs import render
from examples.common.images.vision import import_torchvision

SPLIT_SEED = 0  # the split is the same in every run, whatever the run's own seed
DIGITS_HELDOUT = 500
GLYPHS_SMALLEST = 12
FOLDER_HELDOUT = GLYPHS_HELDOUT = 0.2


class DataError(Exception):
    """The data cannot be had; the message says what to do."""


class Images(NamedTuple):
    """Images are [N, C, H, W]: uint8, or float32 in [0, 1]."""

    train: Tensor
    heldout: Tensor
    heldout_labels: Tensor  # [N] int64
    classes: list[str]
    # Where two views are two images: those of one group show the same thing, in other fonts.
    train_groups: Tensor | None = None  # [N] int64
    heldout_fonts: Tensor | None = None  # [N] int64
    fonts: tuple[str, ...] = ()
    train_labels: Tensor | None = None  # [N] int64, for a supervised method to compare with


def as_float(images: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def load(name: str, root: Path | None, image_size: int, *, download: bool = False) -> Images:
    """Reads the data set called ``name`` into memory, split the same way each time.

    Args:
        name: ``digits``, ``glyphs``, ``cifar10``, ``stl10`` or ``folder``.
        root: Where the data lie; not needed for digits and glyphs.
        image_size: Pixels a side.
        download: Let torchvision fetch CIFAR-10 or STL-10 where they are missing.

    Raises:
        DataError: torchvision or the data are missing, or there is too little to evaluate on.
    """
    if name == "digits":
        images = _digits(image_size)
    elif name == "glyphs":
        images = _glyphs(image_size)
    elif root is None:
        raise DataError(f"--data {name} needs --root PATH, the folder that holds the images")
    elif name == "folder":
        images = _folder(root, image_size)
    else:
        images = _from_torchvision(name, root, image_size, download)
    smallest = int(images.heldout_labels.bincount(minlength=len(images.classes)).min())
    if len(images.classes) < 2 or smallest < 6:
        raise DataError(
            "the 5-shot probe needs two classes or more with 6 held-out images each; got "
            f"{len(images.classes)} classes, the smallest with {smallest} held-out images"
        )
    return images


def _digits(image_size: int) -> Images:
    if image_size != 8:
        raise DataError(f"the digits are 8 x 8; got image_size {image_size}")
    digits: Any = load_digits()
    pixels = torch.from_numpy(digits.images).float().div(16)[:, None]
    train, heldout = _split(digits.target, DIGITS_HELDOUT)
    labels = torch.from_numpy(digits.target)
    return Images(
        pixels[train],
        pixels[heldout],
        labels[heldout],
        [str(i) for i in range(10)],
        train_labels=labels[train],
    )


def _glyphs(image_size: int) -> Images:
    """Held-out characters: training sees none of them in any font."""
    if image_size < GLYPHS_SMALLEST:
        raise DataError(
            f"glyphs take {GLYPHS_SMALLEST} pixels or more; got image_size {image_size}"
        )
    glyphs = render(image_size)
    classes = np.unique(glyphs.labels)
    _, heldout = train_test_split(classes, test_size=GLYPHS_HELDOUT, random_state=SPLIT_SEED)
    is_heldout = np.isin(glyphs.labels, heldout)
    train, test = np.flatnonzero(~is_heldout), np.flatnonzero(is_heldout)
    pixels = torch.from_numpy(glyphs.pixels)[:, None]
    names, labels = np.unique(glyphs.labels[test], return_inverse=True)
    return Images(
        pixels[train],
        pixels[test],
        torch.from_numpy(labels),
        [glyphs.names[label] for label in names],
        train_groups=torch.from_numpy(glyphs.labels[train]),
        heldout_fonts=torch.from_numpy(glyphs.fonts[test]),
        fonts=glyphs.font_names,
        train_labels=torch.from_numpy(glyphs.labels[train]),
    )


def _split(labels: np.ndarray, heldout: int | float) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint indices, every class in both in the same proportion."""
    train, test = train_test_split(
        np.arange(len(labels)), test_size=heldout, stratify=labels, random_state=SPLIT_SEED
    )
    return np.sort(train), np.sort(test)


def _torchvision() -> ModuleType:
    try:
        return import_torchvision()
    except ImportError as error:
        raise DataError(
            "this data set is read by torchvision, which cannot be imported "
            f"({error}); `pip install torchvision`, or use --data digits, which needs nothing"
        ) from error


def _from_torchvision(name: str, root: Path, image_size: int, download: bool) -> Images:
    datasets = _torchvision().datasets

    def read(open_set: Callable[..., Any], **which: Any) -> Any:
        try:
            return open_set(str(root), download=download, **which)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{name} was not found whole under {root} ({error}); name its folder with --root, "
                "or let --download fetch it there"
            ) from error

    if name == "cifar10":
        train, test = (read(datasets.CIFAR10, train=part) for part in (True, False))
        pixels = [torch.from_numpy(part.data).permute(0, 3, 1, 2) for part in (train, test)]
        labels = torch.tensor(test.targets)
    else:
        train, test = (read(datasets.STL10, split=part) for part in ("train+unlabeled", "test"))
        pixels = [torch.from_numpy(part.data) for part in (train, test)]
        labels = torch.from_numpy(test.labels).long()
    train_pixels, test_pixels = (_resize(part, image_size) for part in pixels)
    return Images(train_pixels, test_pixels, labels, list(test.classes))


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images.contiguous()
    resized = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    for into, part in zip(resized.split(1024), images.split(1024), strict=True):
        into.copy_(
            torch.nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
        )
    return resized


def _folder(root: Path, image_size: int) -> Images:
    """One subfolder a class; or ``train/`` and ``val/``, each with one subfolder a class."""
    torchvision = _torchvision()
    shape = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(image_size),
            torchvision.transforms.CenterCrop(image_size),
            torchvision.transforms.PILToTensor(),
        ]
    )

    def read(folder: Path) -> Any:
        try:
            return torchvision.datasets.ImageFolder(str(folder), shape)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"no class folders with images under {folder}: {error}") from error

    def pixels(dataset: Any, indices: Any) -> Tensor:
        return torch.stack([dataset[i][0] for i in indices])

    if (root / "train").is_dir() and (root / "val").is_dir():
        train, test = read(root / "train"), read(root / "val")
        labels = np.array(test.targets)
        taken, heldout = np.arange(len(train)), np.arange(len(test))
    else:
        train = test = read(root)
        labels = np.array(test.targets)
        if np.bincount(labels).min() < 2:
            raise DataError(f"a class under {root} has a single image: it cannot be split")
        taken, heldout = _split(labels, FOLDER_HELDOUT)
    heldout_labels = torch.from_numpy(labels[heldout])
    return Images(pixels(train, taken), pixels(test, heldout), heldout_labels, test.classes)
