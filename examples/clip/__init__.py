"""Two towers for pictures of characters and their Unicode names (Radford et al. 2021, CLIP)."""
