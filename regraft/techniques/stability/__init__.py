"""Techniques that keep numbers in range: normalisation, initialisation, constraints on weights."""
