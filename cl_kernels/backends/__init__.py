"""Each module computes every operation of ``_ops.SCHEMAS``; none imports another."""
