"""A queue of keys: negatives from the batches before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag, check_integer
from cl_kernels.checks import check_embeddings
from cl_kernels.losses.labels import as_labels
from cl_kernels.memory.checks import check_dtype, check_stored
from cl_kernels.memory.exchange import rows_of_all
from cl_kernels.memory.stored import Stored
from cl_kernels.memory.window import Window
from cl_kernels.ranks.group import Group, without_compiling


class Queue(Stored):
    """The newest keys of the batches before, first in, first out.

    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning" (2020), section
    3.2: negatives from a slowly moving encoder. With labels it is the memory of Wang et al.,
    "Cross-Batch Memory for Embedding Learning" (2020).

    Read ``keys``, compute the loss, then ``push``: whenever ``backward`` comes. What ``keys`` gave
    never changes, and is no copy either; it must not be written to. Memory is 5/4 of ``size``
    rows, and as much once more while the old is still in use.

    Its ``state_dict`` has the keys, oldest first and zeros behind, ``[size, D]``, their labels and
    how many there are; training goes on from it as if it had not stopped. They are no buffers:
    DistributedDataParallel leaves them alone.

    Args:
        size: How many keys are kept, at least 1.
        dim: Their width D, at least 1.
        labels: Whether each key has an integer with it: its label, or the id of its sample.
        dtype: Of the keys in memory: float32, float16, bfloat16 or float64.
        device: Where they are.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        queue = Queue(65536, 128)
        for images_q, images_k in loader:
            query, key = encoder(images_q), momentum_encoder(images_k)
            loss = info_nce(query, key, queue.keys, temperature=0.07)
            queue.push(key)
            loss.backward()
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        labels: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        check_integer("size", size, 1)
        check_integer("dim", dim, 1)
        check_flag("labels", labels)
        check_dtype(dtype)
        self.size, self.dim = int(size), int(dim)
        with torch.inference_mode(False):
            rows = [torch.empty(0, self.dim, dtype=dtype, device=device)]
            if labels:
                rows.append(rows[0].new_empty(0, dtype=torch.int64))
            self._window = Window.of(self.size, rows)

    @property
    def keys(self) -> Tensor:
        """[n, D], oldest first; n is at most ``size``, and 0 before the first push."""
        return self._window.views[0].detach()

    @property
    def labels(self) -> Tensor:
        """Of each key, int64 [n]; a ValueError of a queue without them."""
        if not self._labelled:
            raise ValueError("labels: expected a queue made with labels=True, got one without")
        return self._window.views[1].detach()

    @property
    def count(self) -> int:
        """How many keys there are, as ``len``."""
        return len(self._window)

    @property
    def dtype(self) -> torch.dtype:
        return self._window.memory[0].dtype

    @property
    def device(self) -> torch.device:
        return self._window.memory[0].device

    @property
    def full(self) -> bool:
        return len(self) == self.size

    @property
    def _labelled(self) -> bool:
        return len(self._window.memory) == 2

    def __len__(self) -> int:
        return self.count

    def keys_like(self, query: Tensor) -> Tensor:
        """``keys`` in the dtype of ``query``, a copy where that is another: outside of autocast the
        losses take embeddings of one dtype."""
        check_embeddings("query", query)
        return self.keys.to(query.dtype)

    @without_compiling
    def push(
        self,
        keys: Tensor,
        labels: Tensor | None = None,
        *,
        unique: bool = False,
        group: Group | None = None,
        gather: bool = False,
    ) -> None:
        """Takes keys in, and lets the oldest go where there are more than ``size``.

        Args:
            keys: Embeddings, shape [n, D], in the order of their age; of more than ``size`` the
                last are taken. float32, float16, bfloat16 or float64, on the queue's device: they
                are detached and rounded to its dtype.
            labels: Integers, shape [n], if the queue has labels.
            unique: Take only the last key of each label among those of this call (for labels that
                are the samples' ids: a DistributedSampler fills its last batch with samples that
                other ranks have). Keys of earlier calls stay. It waits for a GPU.
            group: Of torch.distributed; default: all processes.
            gather: Take the keys of all ranks, in their order, so that all queues stay alike; each
                may give another number. It waits for a GPU. One process takes its own.

        Raises:
            TypeError, ValueError: The message names the argument, what was expected and what came;
                the queue is as it was. Where ranks disagree, on every rank, before any of them
                waits for keys that do not come.
        """

        def own() -> tuple[Tensor, ...]:
            check_flag("unique", unique)
            if unique and not self._labelled:
                raise ValueError("unique: expected False of a queue without labels, got True")
            return self._as_rows(keys, labels)

        given = {"keys": keys, "labels": labels}
        held = f"{len(self)} of {self.size} keys of {self.dtype}"
        settings = {"queue": held, "unique": repr(unique)}
        with torch.inference_mode(False), torch.no_grad():
            rows = rows_of_all("push", own, given, settings, self.device, group, gather)
            if unique:
                newest = _last_of_each(rows[1])
                rows = [x.index_select(0, newest) for x in rows]
            if rows[0].shape[0]:
                self._window = self._window.pushed(rows)

    def clear(self) -> None:
        """Forgets all keys."""
        with torch.inference_mode(False):
            self._window = Window.of(self.size, [x[:0] for x in self._window.memory])

    @classmethod
    def from_bank(
        cls, bank: Tensor, labels: Tensor | None = None, *, newest: int | None = None
    ) -> Queue:
        """A full queue of another library's keys.

        Args:
            bank: A key in each column, shape [D, K], as MoCo keeps them; K is the queue's size.
            labels: Of each key, shape [K].
            newest: The column of the newest key, of which the next one is the oldest: the place
                where the other library would write next, minus 1. Default: the last.

        Returns:
            A queue of the bank's dtype and device, which holds a copy.

        Raises:
            TypeError, ValueError: The message names the argument, what was expected and what came.

        Example::

            queue = Queue.from_bank(moco.queue, newest=int(moco.queue_ptr) - 1)
        """
        check_embeddings("bank", bank)
        size = bank.shape[1]
        newest = size - 1 if newest is None else newest
        check_integer("newest", newest)
        if not -1 <= newest < size:
            raise ValueError(f"newest: expected a column of {size}, or -1, got {newest}")
        dim = bank.shape[0]
        queue = cls(size, dim, labels=labels is not None, dtype=bank.dtype, device=bank.device)
        rows = queue._as_rows(bank.T, labels)
        queue.push(*(x.roll(-1 - int(newest), 0) for x in rows))
        return queue

    def to_bank(self) -> Tensor:
        """The keys as MoCo keeps them, a copy of shape [D, n], oldest first: of a full queue, the
        place to write next is 0."""
        return self.keys.T.clone(memory_format=torch.contiguous_format)

    def extra_repr(self) -> str:
        of_labels = ", labels=True" if self._labelled else ""
        return f"{self.size}, {self.dim}{of_labels}, dtype={self.dtype}"

    def _as_rows(self, keys: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        check_stored("keys", keys, "queue", self.dim, self.device)
        keys = keys.detach().to(self.dtype)
        if (labels is not None) != self._labelled:
            expected, got = ("None", "some") if labels is not None else ("some", "None")
            of = "with" if self._labelled else "without"
            raise ValueError(f"labels: expected {expected} for a queue {of} labels, got {got}")
        return (keys,) if labels is None else (keys, as_labels("labels", labels, keys, "keys"))

    def _tensors(self) -> dict[str, Tensor]:
        kept = {}
        for name, x in zip(("keys", "labels"), self._window.views, strict=False):
            kept[name] = x.new_zeros((self.size, *x.shape[1:]))
            kept[name][: len(self)] = x
        return kept | {"count": torch.tensor(len(self), device="cpu")}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        count = int(tensors["count"])
        if not 0 <= count <= self.size:
            raise ValueError(f"count: expected 0 to {self.size}, got {count}")
        rows = [
            tensors[name][:count].to(own)
            for name, own in zip(("keys", "labels"), self._window.memory, strict=False)
        ]
        self._window = Window.of(self.size, rows)

    def _move(self, fn: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode(False):
            self._window = self._window.moved(fn)


def _last_of_each(ids: Tensor) -> Tensor:
    """The place of the last row of each id, in ascending order."""
    ordered, place = ids.sort(stable=True)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    return place[last].sort().values
