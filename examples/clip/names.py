"""Names to ids: of their words, and of each two words that are neighbours."""

import collections
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from examples.sbert.text import PAD, words

LEAST = 2  # names that have two neighbours, for these to count


class Vocabulary:
    """Words and neighbours that have ids.

    Neighbours tell MACRON AND DIAERESIS from DIAERESIS AND MACRON, at no more than a sum's price.

    Args:
        entries: Their texts; ids are places in this order, from 1 on.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self.entries = list(entries)
        self._id = {entry: i for i, entry in enumerate(self.entries, PAD + 1)}

    @classmethod
    def of(cls, names: Iterable[str]) -> "Vocabulary":
        """All words of the names, and the neighbours that ``LEAST`` of them have."""
        of_name = [parts(name) for name in names]
        single = sorted({word for alone, _ in of_name for word in alone})
        counts = collections.Counter(pair for _, pairs in of_name for pair in set(pairs))
        return cls(single + sorted(pair for pair, count in counts.items() if count >= LEAST))

    def __len__(self) -> int:
        """Ids there are, the padding's included."""
        return len(self.entries) + PAD + 1

    def ids(self, names: Sequence[str]) -> Tensor:
        """Shape [N, L] int64, padded with ``PAD``; what is not known is left out."""
        known = [
            [self._id[part] for part in (*alone, *pairs) if part in self._id]
            for alone, pairs in map(parts, names)
        ]
        ids = torch.full((len(known), max(1, *map(len, known))), PAD)
        for row, found in zip(ids, known, strict=True):
            row[: len(found)] = torch.tensor(found, dtype=torch.int64)
        return ids


def parts(name: str) -> tuple[list[str], list[str]]:
    """Words of a name in lower case, and each two neighbours."""
    alone = words(name)
    return alone, [f"{one} {other}" for one, other in itertools.pairwise(alone)]
