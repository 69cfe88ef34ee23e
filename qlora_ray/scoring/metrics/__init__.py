"""Metrics: one number per answered row, and the choice of them for a dataset."""
