"""Measurements of the library beside what a user would write without it. `python -m benchmarks.packing`."""
