"""Reliability: a run goes on where a step of it cannot be made."""
