"""One run of the `evaluate` command: options, plan, answers as they come, results."""
