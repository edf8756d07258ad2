"""What comes out of mining: triplets, columns, the account in words, and negatives rescored."""

import pytest
import torch

from cl_kernels import CSR
from cl_kernels.mining import mine_hard_negatives
from python_tests.mining import oracle
from python_tests.mining.test_negatives import clusters, lists_of, whole_numbers

# One query is whole, one got a single negative, one has no positive, one found nothing.
POSITIVES = CSR(torch.tensor([0, 2, 3, 3, 4]), torch.tensor([0, 1, 2, 5]))
QUERIES, DOCUMENTS = list("ABCD"), list("abcdef")


@pytest.fixture
def mined():
    scores = torch.tensor([
        [0.9, 0.8, 0.3, 0.2, 0.1, 0.0],
        [0.1, 0.6, 0.5, 0.7, 0.6, 0.9],
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        [0.9, 0.9, 0.9, 0.9, 0.9, 0.2],
    ])  # fmt: skip
    # Queries that are unit vectors read the scores off the corpus.
    return mine_hard_negatives(
        torch.eye(4), scores.T.contiguous(), POSITIVES, num_negatives=2, absolute_margin=0.05,
        candidates=4, normalize=False,
    )  # fmt: skip


def test_found(mined):
    assert mined.indices.tolist() == [[2, 3], [0, -1], [5, 4], [-1, -1]]
    assert mined.counts.tolist() == [2, 1, 2, 0]
    torch.testing.assert_close(mined.positive_scores, torch.tensor([0.9, 0.8, 0.5, 0.2]))
    assert mined.candidates.indices.tolist() == [
        [2, 3, 4, 5], [0, -1, -1, -1], [5, 4, 3, 2], [-1, -1, -1, -1],
    ]  # fmt: skip


def test_triplets(mined):
    anchor, positive, negative = mined.triplets()
    assert anchor.tolist() == [0, 0, 0, 0, 1]
    assert positive.tolist() == [0, 0, 1, 1, 2]
    assert negative.tolist() == [2, 3, 2, 3, 0]


def test_the_account_in_words(mined):
    assert mined.shortfall.of(3) == dict.fromkeys(oracle.REASONS, 0) | {
        "positive": 1, "absolute_margin": 5,
    }  # fmt: skip
    assert mined.shortfall.of(0) == {}
    text = str(mined)
    assert "5 of 8 negatives found" in text
    assert "2 of 4 queries are short (50.00%), 3 negatives missing" in text
    assert "of their 12 candidates" in text
    assert "absolute_margin removed              9 (75.00%)" in text
    assert "where" not in text  # it removed none


COLUMNS = {
    "triplet": {
        "anchor": list("AAAAB"),
        "positive": list("aabbc"),
        "negative": list("cdcda"),
        "scores": [[0.9, 0.3], [0.9, 0.2], [0.8, 0.3], [0.8, 0.2], [0.5, 0.1]],
    },
    "n-tuple": {
        "anchor": list("AA"),
        "positive": list("ab"),
        "negative_1": list("cc"),
        "negative_2": list("dd"),
        "scores": [[0.9, 0.3, 0.2], [0.8, 0.3, 0.2]],
    },
    "labeled-pair": {
        "anchor": list("AAAABBD"),
        "document": list("acdbcaf"),
        "label": [1, 0, 0, 1, 1, 0, 1],
        "score": [0.9, 0.3, 0.2, 0.8, 0.5, 0.1, 0.2],
    },
    "labeled-list": {
        "anchor": list("AAB"),
        "documents": [list("acd"), list("bcd"), list("ca")],
        "labels": [[1, 0, 0], [1, 0, 0], [1, 0]],
        "scores": [[0.9, 0.3, 0.2], [0.8, 0.3, 0.2], [0.5, 0.1]],
    },
}


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("format", COLUMNS)
def test_columns(mined, format, scores):
    columns = mined.columns(QUERIES, DOCUMENTS, format, scores=scores)
    dropped = ("label", "labels") if scores else ("score", "scores")
    expected = {name: c for name, c in COLUMNS[format].items() if name not in dropped}
    assert list(columns) == list(expected)
    for name, column in columns.items():
        if "score" in name:
            torch.testing.assert_close(column, expected[name])
        else:
            assert column == expected[name]


@pytest.mark.parametrize("format", COLUMNS)
def test_columns_make_a_dataset(mined, format):
    datasets = pytest.importorskip("datasets")
    columns = mined.columns(QUERIES, DOCUMENTS, format, scores=True)
    dataset = datasets.Dataset.from_dict(columns)
    assert dataset.column_names == list(columns)
    assert dataset[0] == {name: column[0] for name, column in columns.items()}


def test_columns_refuse():
    query, corpus, positive = clusters(4, 6, 2)
    mined = mine_hard_negatives(query, corpus, positive, return_scores=False)
    for arguments, message in [
        ((QUERIES, DOCUMENTS, "pairs"), "format: expected one of triplet, .*got 'pairs'"),
        ((QUERIES[1:], DOCUMENTS), "queries: expected 4, got 3"),
        ((QUERIES, DOCUMENTS[1:]), "documents: expected 6, got 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            mined.columns(*arguments)
    with pytest.raises(ValueError, match="scores: expected False"):
        mined.columns(QUERIES, DOCUMENTS, scores=True)
    assert len(mined.columns(QUERIES, DOCUMENTS)["anchor"]) == 12


class TestRescore:
    @pytest.mark.parametrize("form", ["flat", "matrix", "numpy"])
    def test_another_models_scores(self, mined, form):
        rows, documents = mined.candidate_pairs()
        assert rows == [0] * 4 + [1] + [2] * 4
        assert documents == [2, 3, 4, 5, 0, 5, 4, 3, 2]
        assert mined.positive_pairs() == ([0, 0, 1, 3], [0, 1, 2, 5])
        scores = torch.tensor([1.0, 7, 3, 4, 2, 5, 5, torch.nan, 6])
        given = scores.numpy() if form == "numpy" else scores
        if form == "matrix":
            given = torch.zeros(4, 4)
            given[mined.candidates.indices >= 0] = scores
        again = mined.rescore(given, [9.0, 4.05, 1, 0])
        # Ceilings 4, 0.95, none and -0.05: 4 itself is out.
        assert again.indices.tolist() == [[4, 2], [-1, -1], [2, 5], [-1, -1]]
        assert again.scores.tolist() == [[3, 1], [-torch.inf] * 2, [6, 5], [-torch.inf] * 2]
        assert again.shortfall.queries.tolist() == [1, 3]
        assert again.shortfall.candidates.tolist() == [1, 0]
        assert again.shortfall.of(1)["absolute_margin"] == 1
        assert sum(again.shortfall.of(3).values()) == 0
        assert again.triplets().negative.tolist() == [4, 2, 4, 2]
        assert len(again.columns(QUERIES, DOCUMENTS, scores=True)["scores"]) == 4

    @pytest.mark.parametrize("seed", range(8))
    def test_with_all_candidates_it_is_mining(self, seed):
        torch.manual_seed(seed)
        query, corpus = whole_numbers(20, 4), whole_numbers(50, 4)
        _, positives = lists_of(20, 50)
        plain = mine_hard_negatives(query, corpus, positives, normalize=False, candidates=50)
        options = {
            "num_negatives": 6, "range_min": seed % 3, "relative_margin": 0.25, "min_score": -3.0,
            "max_score": 5.0, "margin_against": "mean",
        }  # fmt: skip
        again = plain.rescore(plain.candidates.values, plain.positive_scores, **options)
        expected = mine_hard_negatives(query, corpus, positives, normalize=False, **options)
        assert torch.equal(again.indices, expected.indices)
        assert torch.equal(again.scores, expected.scores)
        assert len(again.shortfall) == len(expected.shortfall) > 0
        for name, removed in again.shortfall.removed.items():
            if name != "positive":  # they were no candidates any more
                assert torch.equal(removed, expected.shortfall.removed[name])

    def test_more_negatives_than_candidates(self, mined):
        again = mined.rescore(mined.candidates.values, absolute_margin=None, num_negatives=7)
        assert again.indices.shape == (4, 7)
        assert again.counts.tolist() == [4, 1, 4, 0]

    def test_drawn(self, mined):
        draw = {"sampling": "random", "absolute_margin": None}
        seeds = [torch.Generator().manual_seed(seed) for seed in (0, 0)]
        first, again = (mined.rescore(torch.rand(9), generator=g, **draw).counts for g in seeds)
        assert first.tolist() == again.tolist() == [2, 1, 2, 0]

    def test_refuses(self, mined):
        with pytest.raises(ValueError, match=r"scores: expected .* 9 candidates .*got \[8\]"):
            mined.rescore(torch.rand(8), torch.rand(4))
        with pytest.raises(ValueError, match=r"positive_scores: expected .* 4 positives.*\[5\]"):
            mined.rescore(torch.rand(9), torch.rand(5))
        with pytest.raises(ValueError, match="positive_scores: expected scores to keep a margin"):
            mined.rescore(torch.rand(9))
        with pytest.raises(ValueError, match="num_negatives: expected at least 1, got 0"):
            mined.rescore(torch.rand(9), torch.rand(4), num_negatives=0)
        query, corpus, positive = clusters(4, 6, 2)
        with pytest.raises(ValueError, match="candidates: expected some to rescore"):
            mine_hard_negatives(query, corpus, positive).rescore(torch.rand(4, 3))
