"""Meta-learning: weights from which a few steps on a new task are enough."""
