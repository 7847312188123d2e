"""Augmentation: examples look new each time they are drawn, and keep their labels."""
