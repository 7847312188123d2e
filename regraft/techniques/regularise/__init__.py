"""Regularisation: weights that hold up on rows they were not trained on."""
