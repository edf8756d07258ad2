"""One row for each instance of a data set, which follows its embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._numbers import check_flag, check_integer, check_integers
from cl_kernels._precision import accumulator
from cl_kernels.losses.common import check_choice
from cl_kernels.memory.checks import check_dtype, check_momentum, check_stored
from cl_kernels.memory.exchange import rows_of_all
from cl_kernels.memory.stored import Stored
from cl_kernels.ranks.group import Group, without_compiling
from cl_kernels.reading import readable


class MemoryBank(Stored):
    """A row for each instance of a data set, moved towards its embedding whenever it is seen.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018),
    section 3.1 (the momentum is their code's): every instance is a class whose weight is its row.
    With labels, rows of the same label are the positives of ``supcon``, over the whole data set.

    An update is ``momentum * row + (1 - momentum) * embedding``, both and the result of unit
    length if ``normalize``, in float32 or more whatever the rows' dtype. The first embedding of an
    instance becomes its row as it is; so does the next one of a row that is not finite.

    What ``keys`` gave never changes, whenever ``backward`` comes: the rows are copied by the first
    update after ``keys`` was read, and changed in place by others. ``rows`` copies what it is
    asked for.

    Its ``state_dict`` has the rows, which were seen, and the labels. They are no buffers:
    DistributedDataParallel leaves them alone.

    Args:
        instances: How many there are, at least 1.
        dim: Width D of their embeddings, at least 1.
        momentum: How much of a row stays, from 0 to 1.
        labels: Integer label of each instance, shape [instances].
        normalize: Whether rows are of unit length.
        initialize: ``"empty"``: an instance has no row until it is seen; ``"random"``: rows begin
            as random directions and count as seen (Wu et al.).
        dtype: Of the rows in memory: float32, float16, bfloat16 or float64. A half type rounds
            away what moves a number by less than 1/2048 (float16) or 1/256 of itself: momentum
            near 1 asks for float32.
        device: Where they are.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        bank = MemoryBank(len(dataset), 128, initialize="random")
        for images, index in loader:
            query = encoder(images)
            others = PairFilter(index, bank.indices, "different")
            loss = info_nce(
                query, bank.rows(index), bank.keys, negative_where=others, temperature=0.07
            )
            bank.update(index, query)
            loss.backward()
    """

    def __init__(
        self,
        instances: int,
        dim: int,
        *,
        momentum: float = 0.5,
        labels: Tensor | None = None,
        normalize: bool = True,
        initialize: Literal["empty", "random"] = "empty",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        check_integer("instances", instances, 1)
        check_integer("dim", dim, 1)
        check_momentum(momentum)
        check_flag("normalize", normalize)
        check_choice("initialize", initialize, ("empty", "random"))
        check_dtype(dtype)
        self.instances, self.dim = int(instances), int(dim)
        self.momentum, self.normalize = float(momentum), normalize
        everybody = initialize == "random"
        with torch.inference_mode(False), torch.no_grad():
            rows = torch.zeros(self.instances, self.dim, dtype=dtype, device=device)
            if everybody:
                rows.normal_()
                rows = F.normalize(rows, dim=1) if normalize else rows
            self._rows = rows  # [instances, D]
            self._seen = rows.new_full((self.instances,), everybody, dtype=torch.bool)
            self._labels = None if labels is None else self._as_labels(labels)
            # Of the rows that were seen, once known.
            self._indices = torch.arange(self.instances, device=device) if everybody else None
        self._lent = False  # whether ``keys`` gave the rows themselves

    @property
    def keys(self) -> Tensor:
        """The rows that were seen, [n, D], by index; a copy until all were."""
        if len(self.indices) < self.instances:
            return self._rows.index_select(0, self.indices)
        self._lent = True
        return self._rows.detach()

    @property
    def indices(self) -> Tensor:
        """Of which instances, int64 [n], ascending. It waits for a GPU until all were seen."""
        return self._find_seen() if self._indices is None else self._indices

    @property
    def labels(self) -> Tensor:
        """Their labels, int64 [n]; a ValueError of a bank without."""
        if self._labels is None:
            raise ValueError("labels: expected a bank made with labels, got one without")
        return self._labels.index_select(0, self.indices)

    @property
    def seen(self) -> Tensor:
        """Which instances have a row, bool [instances]; a copy."""
        return self._seen.clone()

    @property
    def dtype(self) -> torch.dtype:
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        return self._rows.device

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, indices: Tensor) -> Tensor:
        """The rows of these instances, [n, D], zeros of those that were not seen; a copy."""
        self._check_indices(indices)
        return self._rows.index_select(0, indices)

    @without_compiling
    def update(
        self,
        indices: Tensor,
        embeddings: Tensor,
        *,
        group: Group | None = None,
        gather: bool = False,
    ) -> None:
        """Moves the rows of these instances towards their embeddings.

        Args:
            indices: Of the instances, integers of shape [n]. Of an instance that is named more
                than once the last embedding counts, and no other.
            embeddings: Shape [n, D], on the bank's device; they are detached.
            group: Of torch.distributed; default: all processes.
            gather: Take those of all ranks, in their order, so that all banks stay alike; each
                may give another number. It waits for a GPU. One process takes its own.

        Raises:
            TypeError, ValueError: The message names the argument, what was expected and what came;
                the bank is as it was. Where ranks disagree, on every rank, before any of them
                waits for rows that do not come. Indices on a GPU are checked under
                ``cl_kernels.debug_checks()`` only.
        """

        def own() -> tuple[Tensor, Tensor]:
            check_stored("embeddings", embeddings, "bank", self.dim, self.device)
            self._check_indices(indices, embeddings)
            return indices.long(), embeddings.detach()

        given = {"indices": indices, "embeddings": embeddings}
        settings = {"momentum": repr(self.momentum), "normalize": repr(self.normalize)}
        settings["bank"] = f"{self.instances} rows of {self.dtype}"
        with torch.inference_mode(False), torch.no_grad():
            rows = rows_of_all("update", own, given, settings, self.device, group, gather)
            if len(rows[0]):
                self._write(*rows)

    def extra_repr(self) -> str:
        return (
            f"{self.instances}, {self.dim}, momentum={self.momentum}, "
            f"normalize={self.normalize}, dtype={self.dtype}"
        )

    def __copy__(self) -> MemoryBank:
        self._lent = True  # by either
        other = self.__class__.__new__(self.__class__)
        vars(other).update(vars(self))
        return other

    def _write(self, indices: Tensor, embeddings: Tensor) -> None:
        ordered, place = indices.sort(stable=True)
        last = place[torch.searchsorted(ordered, indices, right=True) - 1]
        # Rows of the same instance are all made alike: whichever is written last, it is the same.
        wide = torch.promote_types(accumulator(self._rows), embeddings.dtype)
        newest = embeddings.index_select(0, last).to(wide)
        if self.normalize:
            newest = F.normalize(newest, dim=1)
        old = self._rows.index_select(0, indices).to(wide)
        follows = self._seen.index_select(0, indices) & old.isfinite().all(1)
        moved = self.momentum * old + (1 - self.momentum) * newest
        if self.normalize:
            moved = F.normalize(moved, dim=1)
        moved = torch.where(follows[:, None], moved, newest)
        rows = self._rows.clone() if self._lent else self._rows
        rows[indices] = moved.to(rows.dtype)
        self._seen[indices] = True
        self._rows, self._lent = rows, False
        if self._indices is not None and len(self._indices) < self.instances:
            self._indices = None

    @without_compiling
    def _find_seen(self) -> Tensor:
        self._indices = self._seen.nonzero().squeeze(1)
        return self._indices

    def _as_labels(self, labels: Tensor) -> Tensor:
        check_integers("labels", labels)
        if labels.shape != (self.instances,):
            raise ValueError(
                f"labels: expected one for each of the {self.instances} instances, "
                f"got shape {list(labels.shape)}"
            )
        return labels.to(self.device, torch.int64, copy=True)

    def _check_indices(self, indices: Tensor, embeddings: Tensor | None = None) -> None:
        check_integers("indices", indices)
        if indices.dim() != 1:
            raise ValueError(f"indices: expected shape [n], got {list(indices.shape)}")
        if embeddings is not None and len(indices) != len(embeddings):
            raise ValueError(
                f"indices: expected one for each of the {len(embeddings)} rows of embeddings, "
                f"got {len(indices)}"
            )
        if indices.device != self.device:
            raise ValueError(
                f"indices: expected the device of the bank, {self.device}, got {indices.device}"
            )
        if readable(indices) and len(indices):
            low, high = (int(x) for x in indices.aminmax())
            if low < 0 or high >= self.instances:
                raise ValueError(f"indices: expected in [0, {self.instances}), got {low} to {high}")

    def _tensors(self) -> dict[str, Tensor]:
        kept = {"rows": self._rows, "seen": self._seen}
        return kept if self._labels is None else kept | {"labels": self._labels}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        own = self._tensors()
        copied = {name: x.to(own[name], copy=True) for name, x in tensors.items()}
        self._rows, self._seen = copied["rows"], copied["seen"]
        self._labels, self._indices, self._lent = copied.get("labels"), None, False

    def _move(self, fn: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode(False):
            self._rows, self._seen = fn(self._rows), fn(self._seen)
            self._labels = None if self._labels is None else fn(self._labels)
            self._indices = None if self._indices is None else fn(self._indices)
