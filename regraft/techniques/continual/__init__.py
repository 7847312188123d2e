"""Continual learning: one data set after another, without losing the earlier ones."""
