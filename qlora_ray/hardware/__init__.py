"""What each machine is, and what fits where: probe, precision, memory model and placement planner.

Everything but `probe_node` is a pure function. Nothing here imports torch, transformers or ray at module level.
"""

from qlora_ray.hardware.demand import TrialDemand
from qlora_ray.hardware.device import DeviceProfile, NodeProfile
from qlora_ray.hardware.memory import MemoryEstimate, estimate_evaluation_bytes, estimate_memory
from qlora_ray.hardware.placement import plan_placements
from qlora_ray.hardware.plan import Placement, Plan
from qlora_ray.hardware.precision import PrecisionChoice, choose_precision
from qlora_ray.hardware.probe import probe_node
from qlora_ray.hardware.shape import ModelShape
from qlora_ray.hardware.workload import Workload

__all__ = [
    "DeviceProfile",
    "MemoryEstimate",
    "ModelShape",
    "NodeProfile",
    "Placement",
    "Plan",
    "PrecisionChoice",
    "TrialDemand",
    "Workload",
    "choose_precision",
    "estimate_evaluation_bytes",
    "estimate_memory",
    "plan_placements",
    "probe_node",
]
