"""Streamed statistics of ``S = scale * query @ key.T``: differentiable, never holding S."""
