"""Measurements. Each runs alone: `python -m benchmarks.journal`."""
