"""Gradient caching: the batch of a contrastive loss without the activations of that batch.

Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup" (2021). The loss couples all samples of a batch, but only through their embeddings:

1. all chunks are encoded without a graph;
2. the loss on the embeddings of the whole batch gives their gradients, which are cached;
3. each chunk is encoded again, with the same random numbers, and its cached gradients are
   propagated into the encoder.

Step 3 holds the activations of one chunk; the embeddings and their gradients take O(N D).
"""

from cl_kernels.grad_cache.step import GradCache, grad_cache_step

__all__ = ["GradCache", "grad_cache_step"]
