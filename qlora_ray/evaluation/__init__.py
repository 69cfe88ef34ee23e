"""The `evaluate` command: targets, prompt sets, models, answers and their statistics.

`run.driver` does all of it, and `qlora_ray.evaluate` is the only importer. Importing this package loads no torch.
"""
