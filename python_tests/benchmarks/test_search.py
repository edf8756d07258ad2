"""The search benchmark's machinery. Speed itself is never asserted."""

import pytest
import torch

from benchmarks import memory, readme
from benchmarks.search import contestants, report
from benchmarks.search.cases import FILTERED, GOALS, SearchCase, cases, embeddings, filters
from benchmarks.search.memory import measure_fresh

SMALL = SearchCase(7, "random", 30, 400, 16)


@pytest.mark.parametrize("who", contestants.RIVALS)
def test_contestants_find_the_same(who):
    if reason := contestants.missing(who, SMALL):
        pytest.skip(reason)
    ours = contestants.contestant(SMALL, "ours")()
    theirs = contestants.contestant(SMALL, who)()
    if who == "faiss IndexFlatIP":
        values = torch.from_numpy(theirs[0])
    elif who == "semantic_search":
        values = torch.tensor([[hit["score"] for hit in hits] for hits in theirs])
    else:
        parts = theirs if isinstance(theirs, list) else [theirs]
        values = torch.cat([part.values for part in parts])
    torch.testing.assert_close(values, ours.values, atol=1e-5, rtol=0)


def test_an_ascending_corpus_ascends():
    query, key = embeddings(SMALL._replace(kind="ascending", keys=4000, width=384))
    scores = query @ key.T
    assert (scores[:, 2000:].mean(1) > scores[:, :2000].mean(1) + 0.3).all()


def test_the_filters_leave_enough():
    case = FILTERED._replace(queries=40, keys=3000)
    filtered = contestants.contestant(case, "ours")()
    assert (filtered.indices >= 0).all()
    plain = contestants.contestant(case, "ours, unfiltered")()
    assert not torch.equal(filtered.indices, plain.indices)
    assert filters(SMALL) == {}


def test_goals_are_measured():
    assert set(GOALS) <= set(cases(quick=False))
    assert all(case.keys < 100_000 for case in cases(quick=True))


@pytest.mark.slow
@pytest.mark.skipif(not memory.can_measure(), reason="no /proc/self/clear_refs")
def test_memory_beyond_the_results_does_not_grow_with_the_keys():
    peaks = [
        measure_fresh(SearchCase(10, "random", 512, keys, 64), threads=2)
        for keys in (20_000, 80_000)
    ]
    assert abs(peaks[1] - peaks[0]) < 12e6  # of 123 MB more scores
    assert peaks[1] < 40e6


def entry(case, who, rival, ratio):
    samples = [ratio] * 5
    info = {"search": list(case), "who": who, "rival": rival, "loops": 1}
    info |= {"rival_seconds": [1.0] * 5, "neighbours": 0.0}
    return {"extra_info": info, "stats": {"data": samples}}


def test_report():
    best, worst = SearchCase(10), SearchCase(100)
    runs = [
        entry(best, "ours", "product", 1.1),
        entry(worst, "ours", "product", 1.3),
        entry(best, "faiss IndexFlatIP", "product", 1.7),
        entry(FILTERED, "ours", "unfiltered", 1.05),
        {"extra_info": {"search": list(best), "peak_extra_bytes": 12_000_000}, "stats": {}},
    ]
    machine = {"device": "CPU", "cores": 4, "threads": 4, "isa": "AVX2", "backend": "native"}
    machine |= {"versions": {"torch": "2"}, "commit": "abc", "date": "2026-01-01T00:00"}
    summary = report.summarise({"benchmarks": runs, "machine_info": machine})
    tables = report.report(summary)
    lines = {line.split("|")[2].strip(): line for line in tables.splitlines() if "random" in line}
    assert "<= 1.15 | yes" in lines["10"] and "12.0 MB" in lines["10"]
    assert "<= 1.2 " in lines["100"] and "**no**" in lines["100"]
    assert "| faiss IndexFlatIP | 1.70   |" in tables
    filtered = next(line for line in tables.splitlines() if "ours, unfiltered" in line)
    assert "<= 1.1 " in filtered and "yes" in filtered


def test_the_readme_quotes_what_is_committed():
    document = readme.README.read_text()
    for section in readme.SECTIONS:
        assert readme.insert(document, section, readme.tables(section)) == document
