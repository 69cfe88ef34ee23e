"""The sweep's intent: one YAML, validated against typed models, every problem named at once."""

from qlora_ray.config.loading import load_config, parse_override
from qlora_ray.config.schema import SweepConfig

__all__ = ["SweepConfig", "load_config", "parse_override"]
