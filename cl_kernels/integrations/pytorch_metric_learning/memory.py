"""Cross-batch memory."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import common_functions
from torch import Tensor

from .compared import Compared, streams


class CrossBatchMemory(theirs.CrossBatchMemory):
    """``pytorch_metric_learning.losses.CrossBatchMemory``: its arguments, call and buffers. Without
    a miner, the pairs of this package's losses with the memory are not listed."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        of_all_pairs = getattr(self.loss, "of_all_pairs", None)
        listed = indices_tuple is not None or self.miner is not None or enqueue_mask is not None
        if of_all_pairs is None or listed or not streams(self.loss, None):
            return super().forward(embeddings, labels, indices_tuple, enqueue_mask)
        if len(embeddings) > self.memory_size:
            raise ValueError(
                f"embeddings: expected at most the {self.memory_size} rows of the memory, "
                f"got {len(embeddings)}"
            )
        self.reset_stats()
        labels = common_functions.to_device(labels, device=embeddings.device)
        moved = {"device": embeddings.device, "dtype": embeddings.dtype}
        self.embedding_memory = common_functions.to_device(self.embedding_memory, **moved)
        moved["dtype"] = labels.dtype
        self.label_memory = common_functions.to_device(self.label_memory, **moved)
        self.add_to_memory(embeddings, labels, len(embeddings))
        filled = self.memory_size if self.has_been_filled else self.queue_idx
        # The memory is written again before a backward pass may have read it.
        keys = self.embedding_memory[:filled].clone()
        compared = Compared.of(
            self.loss.distance,
            embeddings,
            labels,
            keys,
            self.label_memory[:filled].clone(),
            self.curr_batch_idx,
        )
        self.loss.reset_stats()
        found = of_all_pairs(compared)
        self.loss.add_embedding_regularization_to_loss_dict(found, embeddings)
        return self.loss.reducer(found, embeddings, labels)


REPLACED = [(theirs.CrossBatchMemory, CrossBatchMemory)]
