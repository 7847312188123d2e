"""Techniques that keep a run going: what happens with a step that must not be made."""
