"""Evaluation: metrics with bootstrap intervals, the examples behind them, latency, and the document `metrics.json`."""
