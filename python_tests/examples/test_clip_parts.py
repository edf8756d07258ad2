"""The CLIP example's pieces: what is held out, names, views, loss, and what pixels can do."""

import unicodedata

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from examples.clip import data, evaluate, pixels, splits
from examples.clip.augment import augment, draw
from examples.clip.glyphs import render
from examples.clip.model import Contrast
from examples.clip.names import Vocabulary
from python_tests.examples.clip_runs import config


@pytest.fixture(scope="module")
def small():
    return data.load(config())


@pytest.fixture(scope="module")
def glyphs():
    return render()


# What is held out


@pytest.mark.parametrize("which", ["test", "validation"])
def test_nothing_held_out_is_in_training(glyphs, which):
    parts = splits.split(glyphs, which)
    families = [glyphs.families()[font] for font in glyphs.fonts.tolist()]
    names = [glyphs.names[character] for character in glyphs.characters.tolist()]
    train = parts.train.tolist()
    heldout = splits.HELDOUT_FAMILY[which]
    assert heldout not in {families[i] for i in train}
    assert {families[i] for i in [*parts.fonts.tolist(), *parts.both.tolist()]} == {heldout}
    trained = {names[i] for i in train}
    assert {names[i] for i in parts.fonts.tolist()} <= trained
    unseen = {names[i] for i in [*parts.combinations.tolist(), *parts.both.tolist()]}
    assert len(unseen) > 90 and not unseen & trained
    for letter, mark in parts.pairs:  # in neither case, alone or with further diacritics
        forms = [letter.replace(" LETTER ", f"{case} LETTER ") for case in (" CAPITAL", " SMALL")]
        for name in trained:
            base, _, marks = name.partition(" WITH ")
            assert base not in [letter, *forms] or mark not in marks.split(" AND ")
        assert any(name.partition(" WITH ")[0] in [letter, *forms] for name in trained)
        assert sum(mark in name.partition(" WITH ")[2].split(" AND ") for name in trained) >= 3
    pictures = [picture.tobytes() for picture in glyphs.pixels.numpy()]
    out = torch.cat([parts.fonts, parts.combinations, parts.both]).tolist()
    assert not {pictures[i] for i in train} & {pictures[i] for i in out}


def parts_of(name):
    """Base letter and marks, by canonical decomposition."""
    base, *marks = unicodedata.normalize("NFD", unicodedata.lookup(name))
    return base.lower(), marks


@pytest.mark.parametrize("which", ["test", "validation"])
def test_no_mark_has_another_name_in_training(glyphs, which):
    """Greek acutes are TONOS and OXIA."""
    found = splits.split(glyphs, which)
    shown = {}
    for character in glyphs.characters[found.train].unique().tolist():
        base, marks = parts_of(glyphs.names[character])
        shown.setdefault(base, set()).update(marks)
    heldout = glyphs.characters[torch.cat([found.combinations, found.both])].unique()
    names = {glyphs.names[character] for character in heldout.tolist()}
    alone = [parts_of(name) for name in names]
    checked = [(base, marks[0]) for base, marks in alone if len(marks) == 1]
    assert len(checked) > 30
    assert not [(base, mark) for base, mark in checked if mark in shown.get(base, ())]


def test_validation_leaves_the_test_alone(glyphs):
    test, validation = splits.split(glyphs, "test"), splits.split(glyphs, "validation")
    tested = torch.cat([test.fonts, test.combinations, test.both])
    used = torch.cat(validation[:4])
    assert not set(tested.tolist()) & set(used.tolist())
    assert not test.pairs & validation.pairs


def test_a_leak_is_found(glyphs):
    parts = splits.split(glyphs)
    for part, said in (("fonts", "fonts in"), ("combinations", "characters in")):
        leaking = torch.cat([parts.train, getattr(parts, part)[:1]])
        with pytest.raises(splits.LeakError, match=said):
            splits.check_apart(glyphs, parts._replace(train=leaking))
    seen = splits.pairs_of("LATIN SMALL LETTER A WITH ACUTE") | parts.pairs
    with pytest.raises(splits.LeakError, match="combinations in training: LATIN"):
        splits.check_apart(glyphs, parts._replace(pairs=frozenset(seen)))


def test_characters_are_what_their_names_say(glyphs):
    by_name = dict(zip(glyphs.names, glyphs.groups.tolist(), strict=True))
    latin, greek, cyrillic = (
        by_name[f"{script} LETTER {name}"]
        for script, name in (
            ("LATIN CAPITAL", "A"), ("GREEK CAPITAL", "ALPHA"), ("CYRILLIC CAPITAL", "A")
        )
    )  # fmt: skip
    assert latin == greek == cyrillic != by_name["LATIN CAPITAL LETTER A WITH ACUTE"]
    assert "KELVIN SIGN" not in by_name and "MATHEMATICAL BOLD CAPITAL A" not in by_name
    assert glyphs.pixels.flatten(1).amax(1).min() > 0  # no space, and no mark without its letter


# Names, views, loss


def test_names_of_the_same_words_in_another_order_differ():
    names = [
        f"LATIN {case} LETTER U WITH {marks}"
        for case in ("SMALL", "CAPITAL")
        for marks in ("MACRON AND DIAERESIS", "DIAERESIS AND MACRON")
    ]
    vocabulary = Vocabulary.of(names)
    rows = [sorted(row.tolist()) for row in vocabulary.ids(names)]
    assert len({tuple(row) for row in rows}) == 4
    assert vocabulary.ids(["nothing of this"]).tolist() == [[0]]
    assert len(vocabulary) == 1 + len(vocabulary.entries)


def test_views_are_near_their_pictures(small):
    pictures = small.of("train").pixels[::20]
    draws = draw(len(pictures), pictures.shape[-1], torch.Generator().manual_seed(0))
    views = augment(pictures, draws)
    plain = pictures[:, None].float() / 255
    alike = F.cosine_similarity(views.flatten(1), plain.flatten(1))
    assert alike.mean() > 0.6 and alike.max() < 0.999
    still = augment(pictures, type(draws)(*(torch.zeros_like(x) for x in draws)))
    torch.testing.assert_close(still, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_look_alikes_are_no_negatives(name):
    loss = Contrast(name, "all").double()
    image, text = torch.randn(2, 6, 5, dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 2, 2, 3])
    same = groups[:, None] == groups
    logits = F.normalize(image) @ F.normalize(text).T * loss.log_scale.exp()
    if name == "clip":
        logits = logits.masked_fill(same & ~torch.eye(6, dtype=torch.bool), -torch.inf)
        own = torch.arange(6)
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    else:
        expected = -F.logsigmoid((logits + loss.bias) * (2.0 * same - 1)).sum() / 6
    torch.testing.assert_close(loss(image, text, groups), expected)


def test_chance_is_that_of_random_orders():
    relevant = torch.tensor([1, 3, 3])
    assert evaluate.chance(relevant, 10, 1) == pytest.approx((0.1 + 0.3 + 0.3) / 3)
    assert evaluate.chance(relevant, 10, 10) == 1
    assert evaluate.chance(torch.tensor([2]), 5, 2) == pytest.approx(1 - 3 / 10)


def test_pixels_compose_what_was_held_out(small):
    drawn = pixels.composed(small)
    assert set(drawn.characters.tolist()) <= set(small.unseen().tolist())
    trained = set(small.of("train").fonts.tolist())
    assert len(drawn.pixels) > 50 and set(drawn.fonts.tolist()) <= trained
    asked = small.of("combinations")
    right = pixels.nearest(small, asked, small.unseen()) == asked.characters
    assert right.double().mean() > 0.5
    assert torch.equal(
        pixels.nearest(small, small.of("train"), small.known()).unique(), small.known()
    )
