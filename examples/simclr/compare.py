"""The eager loss at the largest batch that a memory budget allows, beside ours at the one asked."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from examples.common import checkpoint
from examples.common.fingerprint import fingerprint
from examples.common.images.data import Images
from examples.common.images.evaluate import encode, evaluate
from examples.common.images.memory import show_size
from examples.common.process import ask, finished
from examples.simclr.config import Config
from examples.simclr.model import make_model
from examples.simclr.train import Trainer

SMALLEST = 64  # pairs
BISECTIONS = 2
COLUMNS = ("eager", "cl_kernels")


def compare(config: Config, images: Images, root: Path | None, folder: Path, budget: int) -> str:
    """Trains both for the same number of epochs, writes ``compare.json``, gives the table.

    Both start from the same weights and keep every other setting.

    Args:
        config: The settings of our side.
        images: What both train on and are evaluated with.
        root: Where the images lie.
        folder: Each side has a folder of its own below.
        budget: Bytes that the first steps of the eager side may take beyond libraries and images.
    """
    eager = replace(config, loss="eager", chunk=0)

    def fits(batch_size: int) -> bool:
        taken = _arm(replace(eager, batch_size=batch_size), root)["peak_bytes"]
        print(f"eager, {batch_size:,} pairs: {show_size(taken)}", file=sys.stderr)
        return taken <= budget

    found = largest(fits, SMALLEST, len(images.train))
    sides = {"eager": replace(eager, batch_size=found), "cl_kernels": config}
    results = {name: _train(side, images, root, folder) for name, side in sides.items()}
    record = {"budget_bytes": budget, "sides": results}
    path = folder / "compare.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return f"{table(results, budget)}\n\nWritten:\n  {path}"


def largest(fits: Callable[[int], bool], smallest: int, most: int) -> int:
    """The largest size up to ``most`` that ``fits``, to a quarter: doubled, then bisected.

    Raises:
        ValueError: Not even ``smallest`` fits.
    """
    good, size = 0, min(smallest, most)
    while size <= most and fits(size):
        good, size = size, 2 * size
    if good == 0:
        raise ValueError(f"the budget is too small for the eager loss on {size} pairs")
    bad = min(size, most + 1)
    for _ in range(BISECTIONS):
        middle = (good + bad) // 2
        if middle > good:
            good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def table(results: dict[str, dict[str, Any]], budget: int) -> str:
    """Both sides, line by line."""
    sides = [results[name] for name in COLUMNS]
    rows: list[tuple[str, list[str]]] = [
        ("pairs a batch", [f"{side['settings']['batch_size']:,}" for side in sides]),
        ("encoded at a time", [_chunk(side) for side in sides]),
        ("peak memory", [show_size(side["peak_bytes"]) for side in sides]),
        ("seconds a step", [f"{side['seconds_a_step']:.3g}" for side in sides]),
        ("steps", [f"{side['steps']:,}" for side in sides]),
        ("seconds in all", [f"{side['seconds']:.0f}" for side in sides]),
        ("mAP", [f"{side['scores']['mAP']:.3f}" for side in sides]),
        ("recall@1", [f"{side['scores']['recall@1']:.3f}" for side in sides]),
    ]
    head = f"{'':18}" + "".join(f"{name:>16}" for name in ("eager loss", "cl_kernels"))
    lines = [f"{name:18}" + "".join(f"{value:>16}" for value in values) for name, values in rows]
    note = (
        f"Eager: the largest batch, to a quarter, with first steps within {show_size(budget)}.\n"
        "Peak memory: of training, beyond libraries and images, in a process of its own."
    )
    return "\n".join([head, *lines, note])


def _chunk(side: dict[str, Any]) -> str:
    return f"{side['settings']['chunk'] or 2 * side['settings']['batch_size']:,} images"


def _train(config: Config, images: Images, root: Path | None, folder: Path) -> dict[str, Any]:
    out = folder / f"{config.loss}-{config.batch_size}"
    out.mkdir(parents=True, exist_ok=True)
    done = out / "arm.json"
    data = fingerprint([images.train, images.train_groups, images.heldout, images.heldout_labels])
    settings = asdict(config) | {"images_sha256": data}
    if (result := finished(done)) and result["settings"] == settings:
        return result
    result = {"settings": settings, **_arm(config, root, out)}
    model = make_model(config, images.train.shape[1])
    model.load_state_dict(checkpoint.load(out / "checkpoint.pt", Trainer.kind)["model"])
    scores = evaluate(encode(model, images.heldout), images)
    result["scores"] = {name: score.mean for name, score in scores.items()}
    done.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _arm(config: Config, root: Path | None, out: Path | None = None) -> dict[str, Any]:
    job = {
        "config": asdict(config),
        "root": root and str(root.resolve()),
        "out": out and str(out.resolve()),
    }
    return ask("examples.simclr.arm", job, f"the {config.loss} side")
