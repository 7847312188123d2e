"""Several processes: workers that may be killed at any time, and ranks that make each step of a training together."""
