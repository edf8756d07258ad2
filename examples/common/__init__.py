"""What the examples share: checkpoints that survive a kill, and checks that fail early."""
