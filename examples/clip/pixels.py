"""What pixels alone can do, to compare with."""

import collections

import torch
from torch import Tensor

from cl_kernels import topk
from examples.clip.data import Data, Pictures
from examples.clip.splits import letter_and_marks


def nearest(data: Data, pictures: Pictures, candidates: Tensor) -> Tensor:
    """The character of the nearest known picture, by cosine, of each picture, [n].

    Of a character that training shows, the pictures known are those; of one that is held out, a
    drawing of it from what training shows: ``composed``.

    Args:
        data: All pictures and their split.
        pictures: What is asked.
        candidates: Characters to choose from, [c].
    """
    train, drawn = data.of("train"), composed(data)
    pixels = torch.cat([train.pixels.flatten(1).float(), drawn.pixels.flatten(1)])
    characters = torch.cat([train.characters, drawn.characters])
    kept = torch.isin(characters, candidates)
    found = topk(pictures.pixels.flatten(1).float(), pixels[kept], 1).indices[:, 0]
    return characters[kept][found]


def composed(data: Data) -> Pictures:
    """Held-out combinations as a font of training would compose them, in float32.

    The font's letter, plus for each diacritic what it adds to the font's other letters of the
    same case, on average. Letters that the font does not have are left out.
    """
    glyphs, train = data.glyphs, data.of("train")
    place = {  # of a picture, by font and name
        (font, glyphs.names[character]): i
        for i, (font, character) in enumerate(
            zip(train.fonts.tolist(), train.characters.tolist(), strict=True)
        )
    }
    pixels = train.pixels.float()
    added: dict[tuple[int, str, str], list[Tensor]] = collections.defaultdict(list)
    for (font, name), i in place.items():
        letter, mark = _apart(name)
        if len(mark) == 1 and (font, letter) in place:
            key = font, _case(name), mark[0]
            added[key].append(pixels[i] - pixels[place[font, letter]])
    drawn, characters, fonts = [], [], []
    for character in data.unseen().tolist():
        name = glyphs.names[character]
        letter, marks = _apart(name)
        for font in range(len(glyphs.font_names)):
            keys = [(font, _case(name), mark) for mark in marks]
            if (font, letter) in place and all(key in added for key in keys):
                sums = sum(torch.stack(added[key]).mean(0) for key in keys)
                drawn.append((pixels[place[font, letter]] + sums).clamp(0, 255))
                characters.append(character)
                fonts.append(font)
    return Pictures(torch.stack(drawn), torch.tensor(characters), torch.tensor(fonts))


def _apart(name: str) -> tuple[str, tuple[str, ...]]:
    """The full name of the letter, and its diacritics."""
    return name.partition(" WITH ")[0], letter_and_marks(name)[1]


def _case(name: str) -> str:
    return "CAPITAL" if " CAPITAL " in name else "SMALL"
