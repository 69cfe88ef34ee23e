"""Tasks of the lm-evaluation-harness: which, how they are run, and what came out."""
