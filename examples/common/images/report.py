"""What training brought: scores before and after, memory of the loss, plots."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.common.device import describe
from examples.common.images import memory, plots
from examples.common.images.data import Images, as_float
from examples.common.images.evaluate import ACROSS_FONTS, DRAWS, Score, encode, evaluate
from examples.common.images.memory import LossFacts, LossSize, show_size
from examples.common.images.train import Trainer

LARGE_BATCH = 16384

Scores = dict[str, dict[str, Score]]  # features -> metric -> score


def write_report(
    trainer: Trainer, images: Images, folder: Path, facts: Callable[[Any, int], LossFacts]
) -> str:
    """Evaluates the run, writes ``report.json`` and the plots, and gives the text to print.

    Args:
        facts: Those of the loss, by the settings and by how many pairs are a large batch.
    """
    config = trainer.config
    loss = facts(config, LARGE_BATCH)
    features = {
        "raw pixels": as_float(images.heldout).flatten(1),
        "before training": encode(trainer.untrained(), images.heldout),
        "after training": encode(trainer.model, images.heldout),
    }
    scores = {name: evaluate(each, images) for name, each in features.items()}
    losses = [_loss_memory(size, config.device) for size in loss.sizes]
    pictures = plots.draw_all(trainer, loss, features, images, folder)
    record = {
        "settings": trainer.settings(),
        "heldout_images": len(images.heldout),
        "scores": {
            name: {metric: score._asdict() for metric, score in each.items()}
            for name, each in scores.items()
        },
        "probe_draws": DRAWS,
        "training_seconds": trainer.seconds,
        "loss_memory": losses,
        "history": trainer.history,
        "machine": describe(trainer.device),
    }
    report = folder / "report.json"
    report.write_text(json.dumps(record, indent=2) + "\n")
    written = "\n".join(f"  {path}" for path in (report, *pictures))
    return "\n\n".join(
        [
            f"{len(images.heldout)} held-out images, {config.epochs} epochs of "
            f"{len(images.train)} images in {trainer.seconds:.0f} s on {trainer.device}",
            score_table(scores),
            memory_table(losses),
            f"Written:\n{written}",
        ]
    )


def score_table(scores: Scores) -> str:
    """Metrics down, features across."""
    metrics = list(next(iter(scores.values())))
    width = max(len(name) for name in scores) + 2
    head = f"{'':14}" + "".join(f"{name:>{width}}" for name in scores)
    rows = [
        f"{metric:14}" + "".join(f"{_show(scores[name][metric]):>{width}}" for name in scores)
        for metric in metrics
    ]
    if metrics == list(ACROSS_FONTS):
        note = "Queries of one font retrieve from another: means over all pairs of fonts."
    else:
        note = f"Probes: mean and standard deviation over {DRAWS} draws of the labelled images."
    return "\n".join([head, *rows, note])


def _show(score: Score) -> str:
    return f"{score.mean:.3f}" + ("" if score.std is None else f" ±{score.std:.3f}")


def memory_table(losses: list[dict[str, Any]]) -> str:
    """Memory of the loss at each size."""
    rows = [
        f"{'pairs a batch':>13}  {'queries x keys':>16}  {'matrix, computed':>16}  "
        f"{'this loss, measured':>19}"
    ]
    for loss in losses:
        measured = loss["measured_bytes"]
        shown = "not measured" if measured is None else show_size(measured)
        dense = show_size(loss["dense_bytes_computed"])
        matrix = f"{loss['rows']:,} x {loss['keys']:,}"
        rows.append(f"{loss['pairs']:13,}  {matrix:>16}  {dense:>16}  {shown:>19}")
        if measured is None:
            rows.append(f"  not measured: {loss['not_measured']}")
    rows.append("The matrix: one float32 copy (autograd keeps several). This loss: peak of forward")
    rows.append("and backward beyond the embeddings, their gradients included, in a fresh process.")
    return "\n".join(rows)


def _loss_memory(size: LossSize, device: str) -> dict[str, Any]:
    measured, why_not = memory.measure(size, device)
    return {
        "pairs": size.pairs,
        "rows": size.queries,
        "keys": size.keys,
        "dim": size.dim,
        "dense_bytes_computed": size.dense_bytes(),
        "measured_bytes": measured,
        "not_measured": why_not,
    }
