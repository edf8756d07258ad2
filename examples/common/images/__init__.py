"""What the examples on images share: data, views, networks, the training loop, scores, report."""
