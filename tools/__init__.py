"""What needs no GPU to be known about GPU kernels: what they compile to, and what that predicts."""
