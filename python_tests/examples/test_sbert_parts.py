"""Parts of the text example: pairs and their split, networks, mining's account, metrics."""

import math
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("tokenizers")

from sklearn.feature_extraction.text import TfidfVectorizer

from cl_kernels.mining import mine_hard_negatives
from examples.sbert import data, mining, python_code
from examples.sbert.config import make_config
from examples.sbert.data import Corpus, DataError, Pairs
from examples.sbert.encoder import EncoderError, load_encoder, make_encoder
from examples.sbert.evaluate import METRICS, scores, tfidf
from examples.sbert.networks import Bag, Transformer
from examples.sbert.text import token_ids, train_tokenizer, words

TEXTS = ["parse the date", "Parses ISO dates of a day", "sum(day, day) over days", "no idea of it"]


# Text


def test_words_take_identifiers_apart():
    assert words("def parseHTTPHeader_2(x):") == ["def", "parse", "http", "header", "2", "x"]
    assert words("Où est le café? 東京") == ["ou", "est", "le", "cafe", "東京"]


def test_token_ids_are_padded_cut_and_never_empty():
    tokenizer = train_tokenizer(TEXTS, 300, max_tokens=5)
    ids = token_ids(tokenizer, ["", "day", "over days over days over days"])
    assert ids.shape == (3, 5) and ids[0].tolist() == [0] * 5
    assert ids[1, 0] > 1 and ids[1, 1:].tolist() == [0] * 4 and (ids[2] > 0).all()
    assert token_ids(tokenizer, ["", "?"]).tolist() == [[0], [0]]


# Networks


def test_the_untrained_bag_is_tfidf():
    """With orthonormal instead of random vectors its cosines are scikit-learn's."""
    config = make_config({"device": "cpu", "dim": 8})
    encoder = make_encoder(config, TEXTS)
    ids = encoder.tokenize(TEXTS)
    encoder.network.vectors = torch.nn.Parameter(torch.eye(len(encoder.network.vectors)))
    ours = encoder.encode(TEXTS)
    options = {"analyzer": lambda row: [i for i in row if i], "sublinear_tf": True}
    theirs = TfidfVectorizer(**options).fit_transform(ids.tolist())
    expected = torch.tensor((theirs @ theirs.T).toarray())
    torch.testing.assert_close((ours @ ours.T).double(), expected)


def test_the_bag_leaves_tokens_out_in_training_only():
    bag = Bag(torch.full((20,), 2.0), 6, dropout=0.5).train()
    ids = torch.tensor([[3, 3, 4, 5, 0], [0, 0, 0, 0, 0]])
    assert not torch.equal(bag(ids), bag(ids))
    bag.eval()
    v = bag.vectors.detach()
    expected = 2 * ((1 + math.log(2)) * v[3] + v[4] + v[5])
    torch.testing.assert_close(bag(ids)[0].detach(), expected)
    assert (bag(ids)[1] == 0).all()


def test_the_transformer_ignores_padding_and_its_batch():
    network = Transformer(30, 16, layers=2, heads=2, max_tokens=9, dropout=0.1).eval().double()
    ids = torch.randint(2, 30, (3, 4))
    alone = torch.cat([network(row[None]) for row in ids])
    torch.testing.assert_close(network(F.pad(ids, (0, 5))), alone)
    assert network(torch.zeros(1, 3, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize("name", ["bag", "transformer"])
def test_an_exported_encoder_encodes_the_same(name, tmp_path):
    given = {"encoder": name, "dim": 16, "max_tokens": 6, "heads": 2, "device": "cpu"}
    encoder = make_encoder(make_config(given), TEXTS)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += 0.1 * torch.randn_like(weight)
    encoder.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert torch.equal(load_encoder(tmp_path).encode(TEXTS), encoder.encode(TEXTS))
    with pytest.raises(EncoderError, match="holds no encoder"):
        load_encoder(tmp_path / "elsewhere")


# Python code


CODE = '''
import functools
@functools.lru_cache(named=1)
def walk_tree(tree):
    """Visit every node of a tree.

    And more about it.
    """
    def inner():
        """Do what must be done inside."""
        return 1
    return walk_tree(tree.left, other_walk_tree)
class Thing:
    """Something that has methods."""
    async def run(self):
        """Run until all of it is done."""
        return self.run
    def no(self):
        """Too short."""
    def nothing(self):
        """Say nothing at all, in many words."""
'''


def test_code_has_neither_its_name_nor_docstrings_nor_decorators(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(CODE)
    pairs = list(python_code._pairs(file, "package.module"))
    expected = {
        "Visit every node of a tree.": (
            "package.module:4",
            "def f(tree):\n\n    def inner():\n        return 1\n"
            "    return f(tree.left, other_walk_tree)",
        ),
        "Run until all of it is done.": (
            "package.module:15",
            "async def f(self):\n    return self.f",
        ),
        "Do what must be done inside.": ("package.module:9", "def f():\n    return 1"),
    }
    assert {pair.query: (pair.place, pair.document) for pair in pairs} == expected
    file.write_text("def f(:\n")
    assert list(python_code._pairs(file, "broken")) == []


def test_packages_are_read_in_order_once_and_split_by_module(tmp_path, monkeypatch):
    root = tmp_path / "lib"
    for i in range(40):
        (root / "pkg" / "tests").mkdir(parents=True, exist_ok=True)
        body = "".join(
            f'def g(x):\n    """Compute thing {i} times {j} here."""\n    return {i} * x + {j}\n'
            for j in range(3)
        )
        (root / "pkg" / f"m{i:02}.py").write_text(body)
        (root / "pkg" / "tests" / f"t{i}.py").write_text(body.replace("Compute", "Test"))
    monkeypatch.setattr(python_code, "PACKAGES", {python_code.STDLIB: ""})
    monkeypatch.setattr(python_code, "_root", lambda name: root)
    corpus = data.load("python", tmp_path / "cache", heldout=0.25)
    modules = [{p.split(":")[0] for p in part.places} for part in corpus[:2]]
    assert modules[0] | modules[1] == {f"pkg.m{i:02}" for i in range(40)}
    assert not modules[0] & modules[1] and 3 <= len(modules[1]) <= 20
    assert corpus.train.places == sorted(corpus.train.places, key=lambda p: p.split(":")[0])
    monkeypatch.setattr(python_code, "_pairs", None)  # the cache has them
    again = data.load("python", tmp_path / "cache", heldout=0.25)
    assert again.train.queries == corpus.train.queries
    fewer = data.load("python", tmp_path / "cache", heldout=0.25, limit=60)
    assert len(fewer.train) + len(fewer.heldout) == 60


def test_the_packages_of_this_machine_are_found():
    for name in python_code.PACKAGES:
        assert len(python_code._files(python_code._root(name))) > 100
    file = python_code._root("numpy") / "linalg" / "__init__.py"
    assert python_code._module("numpy", file) == "numpy.linalg"
    file = python_code._root("stdlib") / "json" / "tool.py"
    assert python_code._module("stdlib", file) == "json.tool"


# Other data sets


def write(path, text):
    path.write_text(textwrap.dedent(text).lstrip().replace("|", "\t"))
    return str(path)


PAIRS = "".join(f"question number {i}|answer {i * i} is it\n" for i in range(60))


def test_two_columns_need_no_names_and_named_ones_are_found(tmp_path):
    plain = data.load(write(tmp_path / "a.tsv", PAIRS), tmp_path)
    assert len(plain.train) + len(plain.heldout) == 60 and plain.dropped == 0
    assert plain.train.places[0] == "row 1" and plain.train.documents[0] == "answer 0 is it"
    rows = "".join(f"{i}|{line}\n" for i, line in enumerate(PAIRS.splitlines()))
    named = write(tmp_path / "b.tsv", "id|asked|told\n" + rows)
    columns = {"query_column": "asked", "document_column": "told"}
    assert data.load(named, tmp_path, **columns).train.queries == plain.train.queries
    with pytest.raises(DataError, match=r"has 3 columns \(id, asked, told\).*--query-column"):
        data.load(named, tmp_path)
    with pytest.raises(DataError, match="has no column title; it has id, asked, told"):
        data.load(named, tmp_path, query_column="title", document_column="told")
    with pytest.raises(DataError, match="both --query-column and --document-column"):
        data.load(named, tmp_path, query_column="asked")
    with pytest.raises(DataError, match="line 3: expected 2 columns"):
        data.load(write(tmp_path / "c.tsv", "a b|c d\ne|f\ng\n"), tmp_path)
    with pytest.raises(DataError, match="2 different pairs"):
        data.load(write(tmp_path / "d.tsv", "a b|c d\ne|f\nA, b!|else\n"), tmp_path)


def test_repeated_texts_are_dropped_and_same_questions_grouped(tmp_path):
    extra = "QUESTION number 3!|another answer\nquestions of the number 7|an answer of its own\n"
    corpus = data.load(write(tmp_path / "a.tsv", PAIRS + extra), tmp_path)
    assert corpus.dropped == 1
    groups = {
        query: int(group)
        for part in corpus[:2]
        for query, group in zip(part.queries, part.groups, strict=True)
    }
    assert groups["questions of the number 7"] == groups["question number 7"]
    assert len(set(groups.values())) == 60


def test_hugging_face_data_sets_from_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"q": [f"question {i}" for i in range(50)], "d": [f"answer {i}" for i in range(50)]}
    made = datasets.Dataset.from_dict(rows | {"n": list(range(50))})
    made.save_to_disk(tmp_path / "set")
    datasets.DatasetDict({"test": made, "train": made}).save_to_disk(tmp_path / "splits")
    for name in ("set", "splits"):
        path = str(tmp_path / name)
        corpus = data.load(path, tmp_path, query_column="q", document_column="d")
        assert len(corpus.train) + len(corpus.heldout) == 50
        with pytest.raises(DataError, match="has the columns q, d, n; name two"):
            data.load(path, tmp_path)
        with pytest.raises(DataError, match="has no column text; it has q, d, n"):
            data.load(path, tmp_path, query_column="q", document_column="text")
        with pytest.raises(DataError, match=r"row 1: .* do not hold texts"):
            data.load(path, tmp_path, query_column="q", document_column="n")


def test_a_data_set_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        data.load("nothing", tmp_path)


# Mining and metrics


def on_circle(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_the_account_says_of_each_document_what_became_of_it():
    queries = on_circle(0.0, 90.0, 91.0, 180.0, 181.0, 182.0)
    documents = on_circle(40.0, 42.0, 20.0, 50.0, 55.0, 60.0)
    names = [f"text {i}" for i in range(6)]
    pairs = Pairs(names, names, names, torch.tensor([0, 1, 2, 0, 3, 4]))
    config = make_config({"negatives": 1, "range_max": 1, "relative_margin": 0.05})
    mined = mining.mine(queries, documents, pairs, config)
    found = mining.account(queries, documents, pairs, mined, 6)
    # Query 0: document 2 is nearest but above the ceiling, 0 is its positive, 1 scores too near
    # it, 3 is of its group, 4 is the negative, 5 is beyond the one rank that is drawn from.
    assert found.documents[0].tolist() == [2, 0, 1, 3, 4, 5]
    said = [mining.VERDICTS[verdict] for verdict in found.verdicts[0].tolist()]
    assert said == [
        "above the ceiling",
        "its positive",
        "above the ceiling",
        "asked in the same words",
        "chosen",
        "beyond the ranks drawn from",
    ]
    assert found.ceilings[0] == pytest.approx(0.95 * math.cos(math.radians(40)))
    text = mining.describe(pairs, found, mined, [0])
    assert "-> " in text and "query     text 0" in text


def test_empty_places_get_another_document_than_the_positive():
    embeddings = F.normalize(torch.randn(5, 3), dim=1)
    mined = mine_hard_negatives(
        embeddings, embeddings, torch.arange(5), num_negatives=3, max_score=-0.2
    )
    assert (mined.indices < 0).any()
    for _ in range(20):
        index = mining.filled(mined)
        assert ((index >= 0) & (index < 5)).all() and (index != torch.arange(5)[:, None]).all()
        assert torch.equal(index[mined.indices >= 0], mined.indices[mined.indices >= 0])


def test_metrics_by_hand():
    documents = torch.eye(12)
    queries = torch.eye(12)
    queries[0] = torch.linspace(0, 1, 12)  # its document is the last of 12
    queries[1] = F.one_hot(torch.tensor(5), 12) + 0.5 * documents[1]  # second
    got = scores(F.normalize(queries, dim=1), documents)
    assert list(got) == list(METRICS)
    assert got["recall@1"] == pytest.approx(10 / 12)
    assert got["recall@10"] == pytest.approx(11 / 12)
    assert got["mrr@10"] == pytest.approx(10.5 / 12)
    assert got["ndcg@10"] == pytest.approx((10 + 1 / math.log2(3)) / 12)


def test_tfidf_is_that_of_the_whole_vocabulary():
    queries = [f"word{'abcdefgh'[i]} common other{'xyz'[i % 3]}" for i in range(8)]
    documents = [f"{q} {'longer ' * i} text common common" for i, q in enumerate(queries)]
    documents[0], documents[1] = documents[1], documents[0]
    part = Pairs(queries, documents, queries, torch.arange(8))
    vectorizer = TfidfVectorizer(analyzer=words, sublinear_tf=True).fit(queries + documents)
    sides = (torch.tensor(vectorizer.transform(t).toarray()) for t in (queries, documents))
    expected = scores(*sides)
    assert 0 < expected["recall@1"] < 1
    assert tfidf(Corpus(part, part, 0)) == pytest.approx(expected)
