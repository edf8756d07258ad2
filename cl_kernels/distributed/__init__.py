"""Losses, searches and metrics of several processes (torch.distributed: NCCL, gloo).

**Losses.** Every loss takes ``gather=`` (and ``group=``; default: all processes). Each rank passes
its rows, in uneven numbers if need be, and gets the loss of all ranks' rows. Its gradients are such
that their mean over the ranks, which DistributedDataParallel takes, is the gradient that one
process with the whole batch would have, scale 1::

    model = DistributedDataParallel(TwoTowers())  # a learned scale in it, too
    images, texts, scale = model(pictures, captions)  # this rank's part of the batch
    loss = clip(images, texts, scale, gather="all")  # of the whole batch, on every rank
    loss.backward()

- ``gather="all"``: rows of all ranks on every rank, O(N D) memory there. The tiles of the
  similarity matrix are divided among the ranks: each visits 1/W of them, forward and backward. It
  serves every loss with all its options; what a loss does beside its statistics (vectors of length
  N; sorting in ``cosent``; covariances in ``vicreg``; the triplets of ``triplet``; ``distill``)
  every rank does for all rows.
- ``gather="ring"``: rows stay, keys go round from rank to rank while the last ones are visited: no
  rank ever has all of them, memory is that of its own rows and of two ranks' keys. It serves every
  loss with all its options. A symmetric matrix (``nt_xent``, losses of labels) is visited whole;
  vectors of length N (labels, ``cosent``'s similarities) are gathered; sums of classes, the rows
  that mining found and the triplets of ``triplet`` take rounds of their own, and ``distill`` two.
- Losses of rows that do not see one another (``arcface`` and the other class softmaxes,
  ``margin_mse``, ``negative_cosine``, ``info_nce`` with a queue alone) exchange numbers only.

What belongs to rows (labels, ids of filters, weights, masks, a query's own negatives) each rank
passes for its own rows; ``target`` counts this rank's rows; ``negative_keys`` [K, D], reference
sets, classes and scales are the same on every rank (but for ``info_nce`` with a queue alone, where
each rank may have its own). With ``reduction="none"`` a rank gets the
losses of its own rows. Half types are widened before gradients are added up.

Parameters of a loss, such as a temperature, must be in a DistributedDataParallel as well: their
gradients have to be averaged. In FSDP the mean is taken likewise. Without either, average all
gradients over the ranks before the step.

Ranks must make the same calls. Before anything large is exchanged they compare what they are
called with; if they differ, every rank raises ``ValueError`` (naming the argument); if one finds
its own arguments wrong it says which, and the others that it did. The group can be used further. A
rank that died, or that is later than the group's timeout, is a ``RuntimeError`` on the others.
torch.compile leaves these calls to Python. With NCCL a call reads a few numbers from the GPU: the
numbers of rows.

**Searches and metrics.** ``topk``, ``range_search``, ``mine_hard_negatives``,
``retrieval_metrics``, ``mean_average_precision``, ``knn_classify`` and ``knn_accuracy`` take
``group=``: each rank passes its shard of the keys, and the results have the bits of one process
that holds them all. (``best_pairs`` and ``duplicate_groups`` do not.)

A loss without ``gather=`` is that of this process's rows. The first one that is called in several
processes warns of that; ``warnings.filterwarnings`` silences it where it is meant.

Alone, without an initialised group, all of these are the plain calls.
"""

from cl_kernels.distributed.rows import gather_rows
from cl_kernels.losses.over_ranks import Gather as Gather
from cl_kernels.ranks.group import Group as Group

__all__ = ["gather_rows"]  # what help() prints: not torch's ProcessGroup
