"""Training control: what changes in the course of a stage by what the run itself shows."""
