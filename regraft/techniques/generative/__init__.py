"""Generative: making examples like those of the data."""
