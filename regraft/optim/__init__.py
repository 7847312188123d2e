"""Optimizers, schedules and parameter groups: what `Descent` is built from."""
