"""Retrieval of held-out documents by their queries."""

from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from cl_kernels.evaluation import retrieval_metrics
from examples.sbert.data import Corpus, Pairs
from examples.sbert.encoder import TextEncoder
from examples.sbert.text import words

METRICS = ("recall@1", "recall@10", "mrr@10", "ndcg@10")

Scores = dict[str, float]


def scores(queries: Tensor, documents: Tensor) -> Scores:
    """Metrics of unit vectors [N, dim] where document i is the one answer to query i."""
    found = retrieval_metrics(
        queries, documents, torch.arange(len(queries)), exact_map=False, normalize=False
    )
    return {name: found[name] for name in METRICS}


def evaluate(encoder: TextEncoder, pairs: Pairs) -> Scores:
    """How well ``encoder`` finds the document of each query among those of all ``pairs``."""
    return scores(encoder.encode(pairs.queries), encoder.encode(pairs.documents))


def tfidf(corpus: Corpus) -> Scores:
    """TF-IDF's scores on the held-out pairs; frequencies are those of the training texts.

    Words are taken apart as for the encoder and counts are damped by a logarithm: without these
    two it finds much less.
    """
    train, heldout = corpus.train, corpus.heldout
    options: Any = {"analyzer": words, "sublinear_tf": True, "dtype": np.float32}
    vectorizer: Any = TfidfVectorizer(**options)
    vectorizer.fit(train.queries + train.documents)
    queries, documents = map(vectorizer.transform, (heldout.queries, heldout.documents))
    # Only the queries' own words count; the others would make the dense rows too wide.
    asked = np.unique(queries.indices)
    return scores(*(torch.from_numpy(side[:, asked].toarray()) for side in (queries, documents)))
