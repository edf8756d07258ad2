"""Speed and memory of cl_kernels against eager PyTorch, the bare matrix product and its peers.

A suite is a folder or a module: ``benchmarks.losses``, ``benchmarks.search``, ``benchmarks.mining``
and ``benchmarks.grad_cache``, which all take ``--quick``, print their tables and write them under
``benchmarks/results/<machine>/``; ``python -m benchmarks.readme`` quotes those in the README.
"""
