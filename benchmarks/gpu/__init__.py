"""Checks and measurements on a CUDA GPU: ``make gpu-check``, one unattended command.

``python -m benchmarks.gpu`` runs the stages of ``stages.py`` one after the other, each within its
own time and none stopping the rest. Cases are answered by worker processes (``worker.py``), so
that what hangs, crashes or breaks the GPU is one case. ``--rehearse`` exercises all of it without
a GPU, with Triton's real cache keys and nothing launched.
"""
