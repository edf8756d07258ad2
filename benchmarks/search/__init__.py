"""Top-K search against the bare product and the searches that people use.

``python -m benchmarks.search`` runs the suite, prints the tables and writes ``search.json``.
"""
