"""What training brought: retrieval before, between and after, beside TF-IDF; plots; exports."""

import json
from pathlib import Path

from examples.common.device import describe
from examples.sbert import index, plots
from examples.sbert.config import Config
from examples.sbert.data import Corpus
from examples.sbert.encoder import make_encoder
from examples.sbert.evaluate import METRICS, Scores, tfidf
from examples.sbert.train import Trainer


def write_report(trainer: Trainer, corpus: Corpus, folder: Path) -> str:
    """Writes ``report.json``, plots, encoder and index; gives the text to print."""
    config, heldout = trainer.config, corpus.heldout
    scores = stages(trainer, tfidf(corpus))
    exported = index.export(trainer.encoder, [corpus.train, heldout], folder)
    untrained = make_encoder(config, [*corpus.train.queries, *corpus.train.documents])
    panels = {
        title: (encoder.encode(heldout.queries), encoder.encode(heldout.documents))
        for title, encoder in (("before training", untrained), ("after training", trainer.encoder))
    }
    training_plot, embedding_plot = folder / "training.png", folder / "embeddings.png"
    plots.plot_training(trainer, scores["TF-IDF"], training_plot)
    plots.plot_embeddings(panels, heldout.places, embedding_plot)
    record = {
        "settings": trainer.settings(),
        "heldout_pairs": len(heldout),
        "dropped_pairs": corpus.dropped,
        "scores": scores,
        "training_seconds": trainer.seconds,
        "history": trainer.history,
        "machine": describe(trainer.device),
    }
    report = folder / "report.json"
    report.write_text(json.dumps(record, indent=2) + "\n")
    written = "\n".join(f"  {p}" for p in (report, training_plot, embedding_plot, *exported))
    no_index = "" if len(exported) > 1 else "\n  no index for `search`: pip install usearch"
    return "\n\n".join(
        [
            f"{len(corpus.train):,} pairs to train on, {len(heldout):,} held out "
            f"({corpus.dropped:,} repeated ones dropped); {trainer.epochs} epochs in "
            f"{trainer.seconds:.0f} s on {trainer.device}",
            table(scores),
            f"Written:\n{written}{no_index}",
        ]
    )


def stages(trainer: Trainer, baseline: Scores) -> dict[str, Scores]:
    """Scores of TF-IDF and of the encoder before, between and after the two stages."""
    config: Config = trainer.config
    found = {"TF-IDF": baseline, "before training": trainer.before}
    found["in-batch negatives"] = trainer.history[config.epochs - 1]
    if config.hard_epochs:
        found["mined negatives"] = trainer.history[-1]
    return {name: {metric: of[metric] for metric in METRICS} for name, of in found.items()}


def table(scores: dict[str, Scores]) -> str:
    """Metrics across, encoders down."""
    head = f"{'held-out retrieval':20}" + "".join(f"{name:>11}" for name in METRICS)
    rows = [
        f"{name:20}" + "".join(f"{of[metric]:11.3f}" for metric in METRICS)
        for name, of in scores.items()
    ]
    return "\n".join([head, *rows])
