"""Checks and measurements on a CUDA GPU: ``make gpu-check``, one unattended command.

``python -m benchmarks.gpu`` runs the stages of ``stages.py`` one after the other, each within its
own time and none stopping the rest, within nine minutes. ``--dry-run`` exercises the same on CPU
tensors of tiny sizes.
"""
