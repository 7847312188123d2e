"""The report of a run: one self-contained HTML file, five lines for the terminal, and the difference between two runs."""
