"""What training brought, beside chance and pixels; pictures; exports."""

import json
from pathlib import Path

import torch

from examples.clip import plots
from examples.clip.data import TESTS, Data
from examples.clip.evaluate import AT, Retrieval, Zeroshot, as_records, embed, retrieval, zeroshot
from examples.clip.index import export
from examples.clip.train import Trainer
from examples.common.device import describe
from examples.common.guards import one_line
from examples.common.images.memory import PeakMemory, show_size

RULE = "An answer is right if it looks like the one asked for; exact: if it is the very name."


def write_report(trainer: Trainer, data: Data, folder: Path) -> str:
    """Writes the report, pictures, towers and index; gives the text to print."""
    memory, not_measured = step_memory(trainer)
    vectors = embed(trainer.model, data)
    chosen, found = zeroshot(data, vectors), retrieval(data, vectors)
    pictures = [folder / "loss.png", folder / "answers.png"]
    title = f"{trainer.config.loss}, {trainer.config.batch_size:,} pairs a batch"
    plots.plot_training(trainer.losses, trainer.history, title, pictures[0])
    plots.plot_answers(data, vectors, pictures[1])
    exported = export(trainer.model, trainer.config, data.glyphs, folder)
    record = {
        "settings": trainer.settings(),
        "pictures": {"train": len(data.parts.train)} | {t: len(data.of(t).pixels) for t in TESTS},
        "characters": {"known": len(data.known()), "unseen": len(data.unseen())},
        "zero_shot": as_records(chosen),
        "retrieval": as_records(found),
        "step_memory_bytes": memory,
        "training_seconds": trainer.seconds,
        "history": trainer.history,
        "losses": trainer.losses,
        "machine": describe(trainer.device),
    }
    about = head(trainer, data, memory, not_measured)
    text = "\n\n".join([about, zeroshot_table(chosen), RULE, retrieval_table(found)])
    report, readable = folder / "report.json", folder / "report.md"
    report.write_text(json.dumps(record, indent=2) + "\n")
    readable.write_text(text + "\n")
    written = "\n".join(f"  {path}" for path in (report, readable, *pictures, *exported))
    return f"{text}\n\nWritten:\n{written}"


def head(trainer: Trainer, data: Data, memory: int | None, not_measured: str) -> str:
    """What was trained, for how long, in how much memory."""
    config, ranks = trainer.config, trainer.ranks.size
    at_once = f"{config.chunk} at a time" if config.chunk else "all at once"
    measured = not_measured if memory is None else show_size(memory)
    return (
        f"{len(data.parts.train):,} pictures of {len(data.known()):,} characters; {config.epochs} "
        f"epochs, {len(trainer.losses)} steps of {config.batch_size:,} pairs in "
        f"{trainer.seconds:.0f} s on {trainer.device}, {ranks} process{'es' * (ranks > 1)}.\n"
        f"Forward and backward of a step, {at_once}: {measured}."
    )


def step_memory(trainer: Trainer) -> tuple[int | None, str]:
    """Peak bytes of one more step's forward and backward; None, and why, if not to be measured."""
    if trainer.ranks.size > 1:
        return None, "not measured with several processes"
    generator = trainer.order.get_state()
    try:
        memory = PeakMemory(trainer.config.device)
        trainer.backward(torch.arange(trainer.config.batch_size))
        return memory.bytes(), ""
    except OSError as error:
        return None, f"not measured ({one_line(error)})"
    finally:
        trainer.order.set_state(generator)
        trainer.optimizer.zero_grad()


def zeroshot_table(rows: list[Zeroshot]) -> str:
    """Tests down; chance, pixels and CLIP across."""
    lines = [
        "| zero-shot | pictures | names to choose from | chance | pixels | CLIP | exact (most) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {TESTS[row.test]} | {row.pictures:,} | {row.choices:,}, {row.names} | {row.chance:.4f} "
        f"| {row.pixels:.3f} | {row.clip:.3f} | {row.exact:.3f} ({row.best_exact:.3f}) |"
        for row in rows
    ]
    return "\n".join(lines)


def retrieval_table(rows: list[Retrieval]) -> str:
    """Tests and directions down, R@k across."""
    across = " | ".join(f"R@{k}" for k in AT)
    lines = [
        f"| retrieval | queries | gallery | chance R@1 | {across} |",
        "|---|---:|---:|---:|" + "---:|" * len(AT),
    ]
    lines += [
        f"| {TESTS[row.test]}, {row.direction} | {row.queries:,} | {row.gallery:,} | "
        f"{row.chance[0]:.4f} | " + " | ".join(f"{value:.3f}" for value in row.clip) + " |"
        for row in rows
    ]
    return "\n".join(lines)
