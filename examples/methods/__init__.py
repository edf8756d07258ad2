"""Eight methods of self-supervision, and a supervised one, in one training loop at equal steps."""
