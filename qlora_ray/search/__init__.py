"""What may vary between trials: search spaces, and Optuna's samplers over them."""
