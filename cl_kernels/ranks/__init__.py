"""The processes of a torch.distributed group, and what they hand one another."""
