"""Demonstrations of how training behaves: each file computes one on a toy problem, with the optimizers that recipes use."""
