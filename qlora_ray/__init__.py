"""Ray-distributed QLoRA sweeps over mixed GPUs."""

__version__ = "0.1.0"
