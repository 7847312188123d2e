"""Stability: numbers that stay in range, by normalisation, initialisation and constraints on weights."""
