"""Alignment: learning from rewards and preferences instead of labels."""
