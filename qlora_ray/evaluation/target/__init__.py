"""What is evaluated: a sweep, a trial, an adapter or a model, and what its folder says of where it came from."""
