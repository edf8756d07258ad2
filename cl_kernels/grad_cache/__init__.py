"""Gradient caching: the batch of a contrastive loss without the activations of that batch.

Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup" (2021). The loss couples all samples of a batch, but only through their embeddings:

1. all chunks are encoded without a graph, and the loss is taken of the embeddings;
2. its backward pass gives the gradients of the embeddings of the whole batch;
3. each chunk is encoded again, with the same random numbers, and its part of these gradients is
   propagated into the encoder.

Step 3 holds the activations of one chunk; the embeddings and their gradients take O(N D). A call of
``GradCache`` is step 1, ``backward()`` of the loss that it returns the others.
"""

from cl_kernels.grad_cache.as_loss import CachedLoss
from cl_kernels.grad_cache.step import GradCache, grad_cache_step

__all__ = ["CachedLoss", "GradCache", "grad_cache_step"]
