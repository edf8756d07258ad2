"""``python -m examples.sbert train``, ``mine`` and ``search``; the same ``train`` resumes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.common.command import ended, to_the_end, working_in
from examples.common.ranks import joined
from examples.common.settings import add_settings, given_settings
from examples.sbert import mining
from examples.sbert.config import Config, make_config
from examples.sbert.data import Corpus, DataError, load
from examples.sbert.encoder import EncoderError, TextEncoder, load_encoder, make_encoder
from examples.sbert.evaluate import evaluate
from examples.sbert.index import ENCODER, SearchError, search
from examples.sbert.report import write_report
from examples.sbert.train import Trainer

RUNS = Path("runs/sbert")


def make_parser() -> argparse.ArgumentParser:
    """One option for each setting, and those that do not touch the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sbert",
        description="Train a text encoder, mine negatives with it, answer questions with it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train, evaluate, report; the same command resumes")
    train.add_argument("--fresh", action="store_true", help="delete the checkpoint in --out")
    mine = commands.add_parser("mine", help="mine negatives; print what was rejected and why")
    mine.add_argument("--samples", type=int, default=5, help="queries to show in full (5)")
    ask = commands.add_parser("search", help="answer a question from what train wrote")
    ask.add_argument("question")
    ask.add_argument("--top", type=int, default=10, help="hits to print (10)")
    for command in (train, mine, ask):
        command.add_argument("--out", type=Path, help="folder of the run; default: runs/sbert/NAME")
        command.add_argument("--quick", action="store_true", help="a small run, in its own folder")
    for command in (train, mine):
        add_settings(command, Config, "bag")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the exit status."""
    parser = make_parser()
    return ended(parser, arguments, run, (DataError, EncoderError, SearchError))


def run(options: argparse.Namespace) -> str:
    """The command that the options name; returns the text to print."""
    config = make_config(given_settings(options, Config), quick=options.quick)
    return COMMANDS[options.command](config, options)


def train(config: Config, options: argparse.Namespace) -> str:
    """Trains, or continues; returns the report."""
    folder = _folder(config, options)
    with joined(config.device) as ranks:
        corpus = _corpus(config)

        def monitor(encoder: TextEncoder) -> dict[str, float]:
            return evaluate(encoder, corpus.heldout) if ranks.first else {}

        trainer = Trainer(config, corpus.train, monitor, ranks)

        def about(ids: list[int]) -> str:
            return "; the first pairs: " + ", ".join(corpus.train.places[i] for i in ids[:3])

        with working_in(folder, trainer):
            path = to_the_end(trainer, folder, fresh=options.fresh, about=about)
            return write_report(trainer, corpus, folder) if ranks.first else f"trained: {path}"


def mine(config: Config, options: argparse.Namespace) -> str:
    """Mines negatives for the training pairs with the run's encoder, or with an untrained one."""
    if options.samples < 0:
        raise ValueError(f"samples: expected at least 0, got {options.samples}")
    pairs = _corpus(config).train
    folder = _folder(config, options) / ENCODER
    if folder.exists():
        encoder, which = load_encoder(folder).to(config.device), f"the encoder in {folder}"
    else:
        encoder = make_encoder(config, [*pairs.queries, *pairs.documents])
        which = f"an untrained encoder ({folder} does not exist)"
    queries, documents = encoder.encode(pairs.queries), encoder.encode(pairs.documents)
    generator = torch.Generator().manual_seed(config.seed)
    mined = mining.mine(queries, documents, pairs, config, generator)
    ranks = min(len(pairs), max(config.range_max, mining.SHOWN))
    account = mining.account(queries, documents, pairs, mined, ranks)
    shown = mining.samples(account, options.samples, generator)
    head = f"{len(pairs):,} pairs, {config.negatives} negatives each, by {which}"
    return head + "\n\n" + mining.describe(pairs, account, mined, shown)


def answer(config: Config, options: argparse.Namespace) -> str:
    """The documents nearest to a question."""
    hits = search(options.question, _folder(config, options), options.top)
    return "\n".join(f"{hit.score:.3f}  {hit.place}\n       {hit.summary}" for hit in hits)


COMMANDS = {"train": train, "mine": mine, "search": answer}


def _corpus(config: Config) -> Corpus:
    return load(
        config.dataset,
        RUNS / "cache",
        query_column=config.query_column,
        document_column=config.document_column,
        heldout=config.heldout,
        limit=config.pairs,
    )


def _folder(config: Config, options: argparse.Namespace) -> Path:
    name = Path(config.dataset).stem + "-quick" * options.quick
    return options.out or RUNS / name


if __name__ == "__main__":
    sys.exit(main())
