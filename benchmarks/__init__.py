"""Speed and memory of cl_kernels against eager PyTorch and the bare matrix product.

``python -m benchmarks`` runs the suites, prints the tables and writes JSON and plots under
``benchmarks/results/<machine>/``; ``python -m benchmarks.report --markdown`` prints the tables
again from what is written there.
"""
