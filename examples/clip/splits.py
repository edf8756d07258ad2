"""What training never sees: whole fonts, and letters with diacritics that it knows apart only."""

import collections
import random
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from examples.clip.glyphs import Glyphs

SCRIPTS = ("LATIN", "GREEK", "CYRILLIC")
HELDOUT_FAMILY = {"test": "STIXGeneral", "validation": "DejaVuSerif"}
HELDOUT = 0.1  # of the letters with diacritics, at least
LETTERS_LEFT = 4  # that training still shows with each diacritic
SEED = 0  # the split is the same in every run, whatever the run's own seed

# Names of one mark: canonical decompositions are equal.
SAME_MARK = {"OXIA": "TONOS", "PROSGEGRAMMENI": "YPOGEGRAMMENI"}

Pair = tuple[str, str]  # a letter without its case, and one diacritic


class LeakError(Exception):
    """Something that is held out is in the training set."""


class Split(NamedTuple):
    """Pictures, as indices into ``Glyphs``."""

    train: Tensor
    fonts: Tensor  # characters of training in fonts that it never saw
    combinations: Tensor  # in fonts of training
    both: Tensor  # combinations in fonts that training never saw
    pairs: frozenset[Pair]  # held out: no name in training has one


def split(glyphs: Glyphs, which: str = "test") -> Split:
    """Training and held-out pictures, without those of the other split.

    Args:
        glyphs: All of them.
        which: ``test``, or ``validation``, which settings are chosen on: all that is held out for
            the test is then in neither part.
    """
    of_character = [letter_and_marks(name) for name in glyphs.names]
    test, validation = _draw(glyphs, of_character)
    pairs = test if which == "test" else validation
    combined = _having(of_character, pairs)
    absent = torch.zeros_like(combined) if which == "test" else _having(of_character, test)
    families = glyphs.families()
    in_family = {
        name: torch.tensor([family == heldout for family in families])
        for name, heldout in HELDOUT_FAMILY.items()
    }
    unseen_font = in_family[which][glyphs.fonts]
    left_out = absent[glyphs.characters]
    if which == "validation":
        left_out |= in_family["test"][glyphs.fonts]
    is_combination = combined[glyphs.characters]
    train = ~(unseen_font | is_combination | left_out)
    seen = torch.zeros(len(glyphs.names), dtype=torch.bool)
    seen[glyphs.characters[train]] = True
    parts = {
        "fonts": unseen_font & seen[glyphs.characters],
        "combinations": is_combination & ~unseen_font & ~left_out,
        "both": is_combination & unseen_font & ~left_out,
    }
    heldout = torch.stack(list(parts.values())).any(0)
    train &= ~_in(glyphs.pixels, glyphs.pixels[heldout])
    indices = {name: part.nonzero().flatten() for name, part in parts.items()}
    found = Split(train.nonzero().flatten(), **indices, pairs=pairs)
    check_apart(glyphs, found)
    return found


def letter_and_marks(name: str) -> tuple[str, tuple[str, ...]]:
    """``LATIN LETTER A`` and its diacritics, if it has any, of the name of a letter.

    The case is left out: what is held out is so in both cases.
    """
    letter, _, marks = name.partition(" WITH ")
    if not letter.startswith(SCRIPTS) or " LETTER " not in letter:
        return letter, ()
    for case in (" CAPITAL ", " SMALL "):
        letter = letter.replace(case, " ")
    return letter, tuple(SAME_MARK.get(x, x) for x in marks.split(" AND ")) if marks else ()


def pairs_of(name: str) -> set[Pair]:
    """The letter of a name with each of its diacritics."""
    letter, marks = letter_and_marks(name)
    return {(letter, mark) for mark in marks}


def check_apart(glyphs: Glyphs, parts: Split) -> None:
    """Nothing that is held out is in training: no picture, font, character or combination.

    Raises:
        LeakError: Something is; the message names it.
    """
    train, heldout = parts.train, torch.cat([parts.fonts, parts.combinations, parts.both])
    new_fonts = torch.cat([parts.fonts, parts.both])
    if both := _common(glyphs.fonts[train], glyphs.fonts[new_fonts]):
        raise LeakError(f"fonts in training: {_named(glyphs.font_names, both)}")
    new = glyphs.characters[torch.cat([parts.combinations, parts.both])]
    if both := _common(glyphs.characters[train], new):
        raise LeakError(f"characters in training: {_named(glyphs.names, both)}")
    trained = glyphs.characters[train].unique().tolist()
    if met := [i for i in trained if pairs_of(glyphs.names[i]) & parts.pairs]:
        raise LeakError(f"combinations in training: {_named(glyphs.names, met)}")
    if bool(_in(glyphs.pixels[heldout], glyphs.pixels[train]).any()):
        raise LeakError("a held-out picture is, pixel by pixel, one of training")
    shown = collections.Counter(
        mark for i in trained for mark in letter_and_marks(glyphs.names[i])[1]
    )
    letters = {letter_and_marks(glyphs.names[i])[0] for i in trained}
    if unknown := [pair for pair in parts.pairs if pair[0] not in letters or not shown[pair[1]]]:
        raise LeakError(f"a letter or a diacritic that training never shows: {sorted(unknown)}")


def _draw(
    glyphs: Glyphs, of_character: list[tuple[str, tuple[str, ...]]]
) -> tuple[frozenset[Pair], frozenset[Pair]]:
    """Pairs held out for the test, and others for the validation."""
    plain = {letter for letter, marks in of_character if not marks}
    having: dict[Pair, set[int]] = collections.defaultdict(set)
    for character, (letter, marks) in enumerate(of_character):
        for mark in marks:
            having[letter, mark].add(character)
    letters_with = collections.Counter(mark for _, mark in having)
    members = collections.defaultdict(set)
    for character, group in enumerate(glyphs.groups.tolist()):
        members[group].add(character)
    enough = HELDOUT * len(set().union(*having.values()))
    order = sorted(having)
    random.Random(SEED).shuffle(order)
    drawn: list[set[Pair]] = [set(), set()]
    characters: list[set[int]] = [set(), set()]
    for pair in order:
        place = 0 if len(characters[0]) < enough else 1
        if len(characters[place]) >= enough:
            break
        alike = set().union(*(members[int(glyphs.groups[i])] for i in having[pair]))
        # What looks the same under another name would show the combination to training.
        if alike != having[pair] or pair[0] not in plain or having[pair] & characters[0]:
            continue
        if letters_with[pair[1]] > LETTERS_LEFT:
            letters_with[pair[1]] -= 1
            drawn[place].add(pair)
            characters[place] |= having[pair]
    return frozenset(drawn[0]), frozenset(drawn[1])


def _having(of_character: list[tuple[str, tuple[str, ...]]], pairs: Iterable[Pair]) -> Tensor:
    """Which characters have one of the pairs, [C] bool."""
    wanted = set(pairs)
    return torch.tensor(
        [any((letter, mark) in wanted for mark in marks) for letter, marks in of_character]
    )


def _in(pictures: Tensor, others: Tensor) -> Tensor:
    """Which of the pictures are among others, [N] bool."""
    known = {picture.tobytes() for picture in others.numpy()}
    return torch.tensor([picture.tobytes() in known for picture in pictures.numpy()])


def _common(one: Tensor, other: Tensor) -> list[int]:
    return sorted(set(one.tolist()) & set(other.tolist()))


def _named(names: list[str] | tuple[str, ...], indices: list[int]) -> str:
    return ", ".join(names[i] for i in indices[:5])
