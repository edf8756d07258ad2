"""Who comes up short of hard negatives: filters inside the search against filters after it.

``python -m benchmarks.mining [--quick]`` mines three negatives a query with a relative margin of
0.05 from clustered texts, prints a table and writes ``mining.json`` beside the other results.

- ours: ``cl_kernels.mine_hard_negatives``;
- best 100, then filter: the same filters on the best 100 of product and ``torch.topk``;
- sentence-transformers: its own ``mine_hard_negatives`` with its defaults, where it is installed;
  its model is replaced by the embeddings, so that all three see the same ones.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine
from benchmarks.neighbours import DISTURBED, Neighbours
from benchmarks.report import RESULTS, machine_line, seconds_text, table
from cl_kernels.mining import mine_hard_negatives

NEGATIVES, MARGIN, FIRST = 3, 0.05, 100
BLOCK = 512  # queries whose scores are held together
REPEATS = 3


class Case(NamedTuple):
    """Texts about so many topics, and positives of each query."""

    queries: int
    documents: int
    topics: int
    positives: int
    width: int = 64


CASES = [Case(5000, 50_000, 500, 1), Case(5000, 50_000, 100, 1), Case(5000, 50_000, 100, 3)]
QUICK = [case._replace(queries=500, documents=5000, topics=case.topics // 10) for case in CASES]


def clusters(case: Case, noise: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and texts spread around topics, and the positives of each query, [Q, positives].

    Some positives are as near to their query as can be, others no nearer than the rest of the
    topic, evenly in between. There must be as many texts as positives.
    """

    def directions(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, case.width), dim=-1)

    centers, own = directions(case.topics), directions(case.queries)
    topic = torch.arange(case.queries) % case.topics
    texts = torch.arange(case.documents) % case.topics
    corpus = F.normalize(centers[texts] + noise * directions(case.documents))
    query = F.normalize(centers[topic] + noise * own)
    turn = torch.arange(case.queries) // case.topics * case.positives  # nobody's twice
    positives = (turn[:, None] + torch.arange(case.positives)) * case.topics + topic[:, None]
    near = torch.rand(case.queries, case.positives, 1)
    offset = near * own[:, None] + (1 - near**2).sqrt() * directions(case.queries, case.positives)
    corpus[positives] = F.normalize(centers[topic][:, None] + noise * offset, dim=-1)
    return query, corpus, positives


def valid(scores: Tensor, indices: Tensor, positives: Tensor, known: Tensor) -> Tensor:
    """Which candidates [m, n] are no positives and keep the margin from the lowest of them."""
    lowest = known.amin(1, keepdim=True)
    far = scores < lowest - lowest.abs() * MARGIN
    return far & (indices[:, :, None] != positives[:, None]).all(2)


def post_filtered(query: Tensor, corpus: Tensor, positives: Tensor) -> Tensor:
    """How many negatives each query gets from the best ``FIRST``, filtered afterwards."""
    counts = []
    for queries, some in zip(query.split(BLOCK), positives.split(BLOCK), strict=True):
        scores = queries @ corpus.T
        best = scores.topk(min(FIRST, len(corpus)), 1)
        kept = valid(best.values, best.indices, some, scores.gather(1, some))
        counts.append(kept.sum(1).clamp_max(NEGATIVES))
    return torch.cat(counts)


def available(query: Tensor, corpus: Tensor, positives: Tensor) -> Tensor:
    """How many of ``NEGATIVES`` valid candidates each query has, in float64."""
    counts = []
    for queries, some in zip(query.split(64), positives.split(64), strict=True):
        scores = queries.double() @ corpus.double().T
        known = scores.gather(1, some).amin(1, keepdim=True)
        far = scores < known - known.abs() * MARGIN
        counts.append((far.scatter(1, some, False)).sum(1).clamp_max(NEGATIVES))
    return torch.cat(counts)


class _Embeddings:
    """What sentence-transformers asks of a model, answered from the rows named by the texts."""

    device = torch.device("cpu")

    def __init__(self, query: Tensor, corpus: Tensor) -> None:
        self.rows = {"q": query, "d": corpus}

    def _encode(self, texts: list[str], **_: Any) -> Any:
        return self.rows[texts[0][0]][[int(text[1:]) for text in texts]].numpy()

    encode_query = encode_document = _encode

    def similarity(self, a: Any, b: Any) -> Tensor:
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(-1)


def sentence_transformers_miner(query: Tensor, corpus: Tensor, positives: Tensor) -> Tensor:
    """The counts of sentence-transformers' own function."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives as theirs

    pairs = [(f"q{i}", f"d{j}") for i, row in enumerate(positives.tolist()) for j in row]
    dataset = Dataset.from_dict({"query": [q for q, _ in pairs], "answer": [d for _, d in pairs]})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        mined = theirs(
            dataset,
            _Embeddings(query, corpus),  # type: ignore[arg-type]
            corpus=[f"d{j}" for j in range(len(corpus))],
            relative_margin=MARGIN,
            num_negatives=NEGATIVES,
            faiss_batch_size=BLOCK,
            output_format="triplet",
            verbose=False,
        )
    counts = torch.zeros(len(query), dtype=torch.int64)
    for anchor, _ in set(zip(mined["query"], mined["negative"], strict=True)):
        counts[int(anchor[1:])] += 1
    return counts


def ours(query: Tensor, corpus: Tensor, positives: Tensor) -> Tensor:
    options = {"num_negatives": NEGATIVES, "relative_margin": MARGIN}
    return mine_hard_negatives(query, corpus, positives, **options).counts


Miner = Callable[[Tensor, Tensor, Tensor], Tensor]
MINERS: dict[str, Miner] = {
    "ours": ours,
    f"best {FIRST}, then filter": post_filtered,
    "sentence-transformers": sentence_transformers_miner,
}


def timed(miner: Miner, data: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, float]:
    """The counts, and the median of the seconds that some runs took."""
    counts, seconds = miner(*data), []
    for _ in range(REPEATS):
        start = perf_counter()
        miner(*data)
        seconds.append(perf_counter() - start)
    return counts, statistics.median(seconds)


def measure(case: Case) -> dict[str, Any]:
    """For each miner the share of short queries, those without need, and seconds."""
    torch.manual_seed(0)
    data = clusters(case)
    possible = available(*data)
    result: dict[str, Any] = case._asdict() | {"miners": {}}
    for name, miner in MINERS.items():
        neighbours = Neighbours()
        try:
            counts, seconds = timed(miner, data)
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        result["miners"][name] = {
            "seconds": seconds,
            "short": float((counts < NEGATIVES).double().mean()),
            "short_without_need": float((counts < possible).double().mean()),
            "neighbours": neighbours.cores(),
        }
    return result


def report(results: list[dict[str, Any]]) -> str:
    header = ["topics", "texts", "queries", "positives", "miner", "short", "without need", "time"]
    rows = [
        [
            str(r["topics"]), str(r["documents"]), str(r["queries"]), str(r["positives"]), name,
            f"{m['short']:.1%}", f"{m['short_without_need']:.1%}", seconds_text(m["seconds"]),
        ]
        for r in results
        for name, m in r["miners"].items()
    ]  # fmt: skip
    text = table(header, rows)
    if any(m["neighbours"] > DISTURBED for r in results for m in r["miners"].values()):
        text += "\n\nNot a quiet machine: other processes kept cores busy."
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mining", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write under")
    options = parser.parse_args()
    described = machine.describe()
    results = [measure(case) for case in (QUICK if options.quick else CASES)]
    print(machine_line(described) + "\n\n" + report(results))
    folder = options.results / described["kind"] / ("partial" if options.quick else "")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mining.json"
    path.write_text(json.dumps({"machine": described, "mining": results}, indent=1) + "\n")
    print(f"\n{path}")
    return int(any(r["miners"]["ours"]["short_without_need"] > 0 for r in results))


if __name__ == "__main__":
    sys.exit(main())
