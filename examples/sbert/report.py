"""What training brought: retrieval before, between and after, beside TF-IDF; plots; exports."""

import json
from pathlib import Path

from cl_kernels.evaluation import ContrastiveMetrics, contrastive_metrics
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
    pairs = (trainer.encoder.encode(heldout.queries), trainer.encoder.encode(heldout.documents))
    logged = contrastive_metrics(*pairs, temperature=config.temperature)
    untrained = make_encoder(config, [*corpus.train.queries, *corpus.train.documents])
    before = untrained.encode(heldout.queries), untrained.encode(heldout.documents)
    panels = {"before training": before, "after training": pairs}
    training_plot, embedding_plot = folder / "training.png", folder / "embeddings.png"
    plots.plot_training(trainer, scores["TF-IDF"], training_plot)
    plots.plot_embeddings(panels, heldout.places, embedding_plot)
    record = {
        "settings": trainer.settings(),
        "heldout_pairs": len(heldout),
        "dropped_pairs": corpus.dropped,
        "scores": scores,
        "heldout_metrics": logged.as_dict(),
        "warnings": logged.warnings(),
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
            health(logged),
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


def health(found: ContrastiveMetrics) -> str:
    """What a batch of all held-out pairs looks like, and what is wrong with it."""
    lines = [
        f"Held-out pairs as one batch: top-1 {found.top1:.3f}, rank {found.rank:.1f}, similarity "
        f"{found.positive_similarity:.2f} (hardest negative "
        f"{found.hardest_negative_similarity:.2f}),",
        f"alignment {found.alignment:.2f}, uniformity {found.uniformity:.2f}, effective rank "
        f"{found.effective_rank:.1f} of {found.full_rank}",
        *(f"warning: {sentence}" for sentence in found.warnings()),
    ]
    return "\n".join(lines)


def table(scores: dict[str, Scores]) -> str:
    """Metrics across, encoders down."""
    head = f"{'held-out retrieval':20}" + "".join(f"{name:>11}" for name in METRICS)
    rows = [
        f"{name:20}" + "".join(f"{of[metric]:11.3f}" for metric in METRICS)
        for name, of in scores.items()
    ]
    return "\n".join([head, *rows])
