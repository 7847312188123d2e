"""Audit: what is wrong or odd with a data set, row by row, and a cleaned copy of it."""
