"""Our classes in the place of sentence-transformers': values, gradients, results, refusals."""

import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sentence_transformers", "6.2")

import sentence_transformers
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer import losses as theirs

from cl_kernels import integrations
from cl_kernels.integrations import sentence_transformers as ours
from cl_kernels.integrations import versions

DISTANCES = theirs.BatchHardTripletLossDistanceFunction
ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


class Embedded(nn.Module):
    """Stands for a model whose embeddings are there."""

    def forward(self, features):
        return features


def value_and_gradients(loss, columns, labels):
    columns = [x.clone().requires_grad_() for x in columns]
    value = loss.compute_loss_from_embeddings(columns, labels)
    value.backward()
    return value.detach(), [x.grad for x in columns]


def assert_alike(name, columns, labels=None, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        mine, their = (getattr(of, name)(Embedded(), **settings) for of in (ours, theirs))
    assert isinstance(mine, type(their)) and mine.get_config_dict() == their.get_config_dict()
    assert mine.citation == their.citation
    found, expected = (value_and_gradients(loss, columns, labels) for loss in (mine, their))
    assert found[0].dtype == (torch.float64 if columns[0].dtype == torch.float64 else torch.float32)
    half = columns[0].dtype in (torch.float16, torch.bfloat16)
    close = {"rtol": 5e-2, "atol": 2e-2} if half else {"rtol": 1e-4, "atol": 2e-6}
    torch.testing.assert_close(found[0], expected[0].to(found[0].dtype), **close)
    torch.testing.assert_close(found[1], expected[1], **close)


def rows(count, width=12, dtype=torch.float64):
    return torch.randn(count, width, dtype=torch.float64).to(dtype)


def pairs(count, columns, dtype=torch.float64):
    first = rows(count)
    return [(first + 0.7 * rows(count)).to(dtype) for _ in range(columns)]


def ranking_settings():
    generator = random.Random(0)
    for _ in range(25):
        directions = ("query_to_doc", *generator.sample(ALL[1:], generator.randint(0, 3)))
        joint = len({"query_to_query", "doc_to_doc"} & set(directions)) or generator.random() < 0.5
        mode = generator.choice([None, "in_batch_negatives", "hard_negatives", "all_negatives"])
        yield {
            "scale": generator.choice([5.0, 20.0]),
            "similarity_fct": generator.choice([util.cos_sim, util.dot_score]),
            "directions": directions,
            "partition_mode": "joint" if joint else "per_direction",
            "hardness_mode": mode,
            "hardness_strength": 0.0 if mode is None else generator.choice([1.0, 9.0]),
        }


@pytest.mark.parametrize("settings", list(ranking_settings()), ids=lambda s: s["partition_mode"])
@pytest.mark.parametrize("columns", [2, 3, 5])
def test_ranking(settings, columns):
    assert_alike("MultipleNegativesRankingLoss", pairs(9, columns), **settings)


def test_ranking_both_ways():
    assert_alike("MultipleNegativesSymmetricRankingLoss", pairs(9, 2), scale=7.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_losses(dtype):
    assert_alike("MultipleNegativesRankingLoss", pairs(9, 3, dtype))
    labels = torch.arange(9) % 3
    for name in ("BatchAllTripletLoss", "BatchHardTripletLoss"):
        if dtype != torch.float16:
            assert_alike(name, [rows(9, dtype=dtype)], labels, margin=1.0)


@pytest.mark.parametrize("metric", [DISTANCES.cosine_distance, DISTANCES.euclidean_distance])
@pytest.mark.parametrize("classes", [1, 3, 7, 40])
@pytest.mark.parametrize("name", [
    "BatchAllTripletLoss", "BatchHardTripletLoss", "BatchHardSoftMarginTripletLoss",
    "BatchSemiHardTripletLoss",
])  # fmt: skip
def test_triplets(name, classes, metric):
    labels = torch.randint(classes, (40,))
    settings = {} if "Soft" in name else {"margin": 0.3}
    assert_alike(name, [rows(40)], labels, distance_metric=metric, **settings)


@pytest.mark.parametrize("name", ["BatchAllTripletLoss", "BatchSemiHardTripletLoss"])
def test_labels_that_are_fractions(name):
    assert_alike(name, [rows(20)], torch.randint(6, (20,)) / 2, margin=0.3)


@pytest.mark.parametrize("columns", [2, 4])
def test_scored_pairs(columns):
    scores = torch.rand(15, dtype=torch.float64).round(decimals=1)
    if columns == 2:
        for similarity in (util.pairwise_cos_sim, util.pairwise_dot_score):
            given = {"scale": 9.0, "similarity_fct": similarity}
            assert_alike("CoSENTLoss", pairs(15, 2), scores, **given)
    assert_alike("AnglELoss", pairs(15, columns), scores)
    if columns > 2:
        assert_alike("AnglELoss", pairs(15, columns), None, scale=5.0)


def model_of(width=16):
    """A transformer that learns, with a tokenizer, small enough for a test."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(60))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    return tokenizer, BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=width, max_position_embeddings=32,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student and a guide, as the library loads them."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    found = []
    for name, width in (("student", 16), ("guide", 24)):
        torch.manual_seed(width)
        folder = str(tmp_path_factory.mktemp(name))
        tokenizer, network = model_of(width)
        tokenizer.save_pretrained(folder)
        network.save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=16)
        found.append(
            SentenceTransformer(modules=[transformer, Pooling(width)], device="cpu").eval()
        )
    return found


def texts(rows, seed):
    generator = random.Random(seed)
    return [" ".join(f"w{generator.randrange(60)}" for _ in range(6)) for _ in range(rows)]


def trained(loss, model, columns):
    features = [model.preprocess(texts(13, seed)) for seed in range(columns)]
    model.zero_grad()
    value = loss(features, torch.empty(0))
    value.backward()
    return value.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("name", "columns", "settings"), [
    ("MultipleNegativesRankingLoss", 3, {}),
    ("CachedMultipleNegativesRankingLoss", 2, {"mini_batch_size": 4, "directions": ALL}),
    ("CachedMultipleNegativesRankingLoss", 4, {"mini_batch_num_tokens": 20}),
    ("CachedMultipleNegativesSymmetricRankingLoss", 2, {"mini_batch_size": 5}),
    ("MegaBatchMarginLoss", 2, {"mini_batch_size": 4}),
    ("MegaBatchMarginLoss", 2, {"use_mini_batched_version": False}),
    ("GISTEmbedLoss", 2, {"temperature": 0.1}),
    ("GISTEmbedLoss", 3, {"margin_strategy": "relative", "margin": 0.1}),
    ("GISTEmbedLoss", 2, {"contrast_anchors": False, "margin": 0.05}),
    ("CachedGISTEmbedLoss", 4, {"mini_batch_size": 4, "contrast_positives": False}),
], ids=str)  # fmt: skip
def test_of_models(models, name, columns, settings):
    model, guide = models
    given = {"guide": guide} if "GIST" in name else {}
    results = []
    for of in (ours, theirs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
            loss = getattr(of, name)(model, **given, **settings)
        results.append(trained(loss, model, columns))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_a_guide_with_words_of_its_own(models, monkeypatch):
    model, guide = models
    results = []
    for of in (ours, theirs):
        loss = of.GISTEmbedLoss(model, guide)
        monkeypatch.setattr(loss, "must_retokenize", True)
        monkeypatch.setattr(loss, "tokenizer", model.tokenizer, raising=False)
        results.append(trained(loss, model, 2))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_under_matryoshka(models):
    model, _ = models
    results = []
    for of in (ours, theirs):
        inner = of.MultipleNegativesRankingLoss(model)
        loss = theirs.MatryoshkaLoss(model, inner, [16, 8, 5])
        results.append(trained(loss, model, 2))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


# Searches


@pytest.mark.parametrize("score", [util.cos_sim, util.dot_score])
def test_semantic_search(score):
    query, corpus = rows(20, dtype=torch.float32), rows(300, dtype=torch.float32)
    for top_k in (1, 7, 400):
        mine, their = (
            of.semantic_search(query, corpus, top_k=top_k, score_function=score)
            for of in (ours, util)
        )
        for got, expected in zip(mine, their, strict=True):
            assert [x["corpus_id"] for x in got] == [x["corpus_id"] for x in expected]
            np.testing.assert_allclose(
                [x["score"] for x in got], [x["score"] for x in expected], rtol=1e-5, atol=1e-6
            )
    assert ours.semantic_search(query[0].numpy(), corpus.numpy(), top_k=3)[0][0].keys() == {
        "corpus_id", "score"
    }  # fmt: skip


@pytest.mark.parametrize(("top_k", "max_pairs"), [(100, 500_000), (3, 500_000), (40, 60), (1, 1)])
def test_paraphrase_mining(top_k, max_pairs):
    x = rows(70, dtype=torch.float32)
    mine, their = (
        of.paraphrase_mining_embeddings(x, top_k=top_k, max_pairs=max_pairs) for of in (ours, util)
    )
    assert [pair[1:] for pair in mine] == [pair[1:] for pair in their]
    scores = [[pair[0] for pair in found] for found in (mine, their)]
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)


def test_paraphrase_mining_of_a_model(models):
    sentences = texts(25, 0)
    mine, their = (
        of.paraphrase_mining(models[0], sentences, batch_size=7, max_pairs=50)
        for of in (ours, util)
    )
    assert [pair[1:] for pair in mine] == [pair[1:] for pair in their]


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("least", [1, 4, 10])
def test_communities(threshold, least):
    centers = rows(6)
    x = (centers[torch.randint(6, (150,))] + 0.4 * rows(150)).float()
    mine, their = (
        of.community_detection(x, threshold=threshold, min_community_size=least)
        for of in (ours, util)
    )
    assert [sorted(found) for found in mine] == [sorted(found) for found in their]
    assert [found[0] for found in mine] == [found[0] for found in their]


# Patching, and what is refused


def test_patch_and_unpatch():
    names = ("MultipleNegativesRankingLoss", "GISTEmbedLoss", "CoSENTLoss", "BatchAllTripletLoss")
    originals = {name: getattr(theirs, name) for name in names}
    search, cached = util.semantic_search, theirs.CachedMultipleNegativesRankingLoss
    cached = sys.modules[cached.__module__]
    integrations.patch("sentence_transformers")
    try:
        integrations.patch("sentence_transformers")  # once more changes nothing
        for name in names:
            assert getattr(theirs, name) is getattr(ours, name)
            defined = sys.modules[originals[name].__module__]
            assert getattr(defined, name) is getattr(ours, name)
        from sentence_transformers.util import semantic_search

        assert semantic_search is util.semantic_search is ours.semantic_search
        assert "sentence_transformers" in integrations.patched()
        assert cached.MultipleNegativesRankingLoss is ours.MultipleNegativesRankingLoss
    finally:
        integrations.unpatch()
    assert all(getattr(theirs, name) is original for name, original in originals.items())
    assert util.semantic_search is search and integrations.patched() == ()


def test_nothing_is_left_of_a_patch():
    """Also in modules that were imported while it held."""
    code = (
        "import sys, pkgutil, importlib, cl_kernels.integrations as i\n"
        "i.patch()\n"
        "import sentence_transformers.sentence_transformer.evaluation\n"
        "import pytorch_metric_learning.trainers, pytorch_metric_learning.utils.distributed\n"
        "i.unpatch()\n"
        "left = [f'{n}.{a}' for n, m in list(sys.modules.items())\n"
        "        if n.startswith(('sentence_transformers', 'pytorch_metric_learning'))\n"
        "        for a, x in list(vars(m).items())\n"
        "        if getattr(x, '__module__', '').startswith('cl_kernels')]\n"
        "assert not left and not i.patched(), left\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_hardly_anything_to_search():
    x = rows(3, dtype=torch.float32)
    for of in (ours, util):
        assert of.semantic_search(x, x, top_k=0) == [[], [], []]
        assert of.paraphrase_mining_embeddings(x, top_k=0) == []
        assert of.community_detection(torch.empty(0, 4), min_community_size=1) == []
    below = torch.tensor([[1.0, 0.0], [0.79999998, 0.6]], dtype=torch.float64)
    found = [
        of.community_detection(below, threshold=0.8, min_community_size=2) for of in (ours, util)
    ]
    assert found[0] == found[1]


def test_what_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"similarity_fct: expected one of .* got euclidean_sim"):
        ours.MultipleNegativesRankingLoss(Embedded(), similarity_fct=util.euclidean_sim)
    with pytest.raises(ValueError, match=r"similarity_fct: expected one of .* got <lambda>"):
        ours.CoSENTLoss(Embedded(), similarity_fct=lambda a, b: a @ b)
    with pytest.raises(ValueError, match=r"distance_metric: expected one of .* got <lambda>"):
        ours.BatchHardTripletLoss(Embedded(), distance_metric=lambda x: x @ x.T)
    with pytest.raises(ValueError, match="score_function: expected one of"):
        ours.semantic_search(rows(2), rows(3), score_function=util.manhattan_sim)
    with pytest.raises(TypeError, match="corpus_embeddings: expected dense embeddings"):
        ours.semantic_search(rows(2), rows(3).to_sparse())
    with pytest.raises(ValueError, match="labels: expected one for each of the 4 rows"):
        ours.BatchAllTripletLoss(Embedded()).compute_loss_from_embeddings([rows(4)], torch.ones(3))
    with pytest.raises(ValueError, match="sentence_features: expected an anchor, a positive"):
        ours.MultipleNegativesRankingLoss(Embedded()).compute_loss_from_embeddings([rows(4)])
    with pytest.raises(ValueError, match=r"libraries: expected names among .*, got"):
        integrations.patch("sentence_transformer")
    monkeypatch.setattr(versions, "version", lambda package: "7.1.0")
    with pytest.raises(ImportError, match=r"expected a version >=6.2,<7.0, .* got 7.1.0"):
        versions.require("sentence-transformers", (6, 2), (7, 0))
    assert sentence_transformers.__version__.startswith("6.")
