"""Losses as pure functions of tensors and as objectives, one family a file."""
