"""Distillation: learning from another model's outputs."""
