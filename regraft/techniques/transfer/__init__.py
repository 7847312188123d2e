"""Transfer: which part of a pretrained network trains, when, and how fast."""
