"""Losses and primitives against eager PyTorch and the bare matrix product; what options cost.

``python -m benchmarks.losses`` runs the suites, prints the tables and writes JSON and plots under
``benchmarks/results/<machine>/``; ``python -m benchmarks.losses.report --markdown`` prints the
tables again from what is written there.
"""
