"""The GPUs that a pool may have: what torch reports of each, and how fast it is by its data sheet.

For planning without the machine, and for classes that a node without a GPU claims. A real device is always asked.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from qlora_ray.errors import ConfigError
from qlora_ray.formats import MIB, format_count, shorten
from qlora_ray.hardware.device import DeviceProfile
from qlora_ray.hardware.memory_counts import context_bytes_of

# A device that is called as one in the catalogue is that one if its memory is so near: an A100 of 40 or of 80 GB, a
# V100 of 16 or of 32.
SAME_MEMORY_SHARE = 0.15
# A plan lists every GPU. A choice: more than the largest pools have, and planned in seconds.
MAX_GPUS = 10_000
# Of a name in a message.
MAX_SHOWN = 60


@dataclass(frozen=True)
class GpuClass:
    """One kind of GPU.

    `total_memory_mib` is torch.cuda.get_device_properties(i).total_memory: below the nominal memory by what the driver
    keeps, and by ECC bits where they lie in the same memory (T4, A10, L4, L40S). It differs by driver and system by up
    to 2 %: here the least that was seen on Linux, so that a plan errs to the safe side.

    Attributes:
        name: As people say it, and as `--gpus` takes it.
        device_name: As torch reports it.
        nominal_gib: By the data sheet.
        compute_capability: NVIDIA, "CUDA GPU Compute Capability" (developer.nvidia.com/cuda-gpus).
        half_tflops: Peak of dense fp16 or bf16 products that are summed in fp32, as torch computes them; fp32's peak
            where there are no tensor cores and halves gain nothing.
        fp32_tflops: Peak of fp32, without tensor cores.
        bandwidth_gb_s: Of its memory.
        memory_source: Where the memory that torch reports was read.
        sheet: Where the speeds are from.
        aliases: What else it is called.
    """

    name: str
    device_name: str
    nominal_gib: int
    total_memory_mib: int
    compute_capability: tuple[int, int]
    half_tflops: float
    fp32_tflops: float
    bandwidth_gb_s: float
    memory_source: str
    sheet: str
    aliases: tuple[str, ...] = ()

    @property
    def total_memory_bytes(self) -> int:
        return self.total_memory_mib * MIB

    def to_device(self, *, index: int = 0, is_simulated: bool = False) -> DeviceProfile:
        """A device of this class that nothing else uses, as the probe would find it: beside its own CUDA context."""
        return DeviceProfile(
            index=index,
            kind="cuda",
            name=self.device_name,
            compute_capability=self.compute_capability,
            total_memory_bytes=self.total_memory_bytes,
            free_memory_bytes=self.total_memory_bytes - context_bytes_of(self.compute_capability),
            is_simulated=is_simulated,
        )


# Where memory was read: DEVICES is the line that Ultralytics' trainers print of a device ("CUDA:0 (Tesla T4,
# 15102MiB)", total_memory / 2**20); OOM is the "total capacity" of torch's out-of-memory message.
DEVICES, OOM, QUERY = "device line of Ultralytics' logs", "torch's out-of-memory message", "CUDA samples' deviceQuery"
NVIDIA_SMI = "nvidia-smi's total less 1 %, which the driver keeps on its like"
# fmt: off
CATALOGUE: tuple[GpuClass, ...] = (
    GpuClass("P4", "Tesla P4", 8, 7603, (6, 1), 5.5, 5.5, 192, NVIDIA_SMI, "Tesla P4 data sheet"),
    GpuClass("P100", "Tesla P100-PCIE-16GB", 16, 16280, (6, 0), 9.3, 9.3, 732, DEVICES, "Tesla P100 PCIe data sheet",
             ("P100-16",)),
    GpuClass("GTX1080Ti", "NVIDIA GeForce GTX 1080 Ti", 11, 11172, (6, 1), 11.3, 11.3, 484, NVIDIA_SMI,
             "GeForce GTX 1080 Ti product page"),
    GpuClass("V100-16", "Tesla V100-SXM2-16GB", 16, 16130, (7, 0), 125, 15.7, 900, DEVICES, "V100 SXM2 data sheet",
             ("V100",)),
    GpuClass("V100-32", "Tesla V100-SXM2-32GB", 32, 32494, (7, 0), 125, 15.7, 900, DEVICES, "V100 SXM2 data sheet"),
    GpuClass("T4", "Tesla T4", 16, 14909, (7, 5), 65, 8.1, 320, OOM, "T4 data sheet"),
    GpuClass("GTX1650", "NVIDIA GeForce GTX 1650", 4, 3901, (7, 5), 6.0, 3.0, 128, OOM,
             "Turing architecture whitepaper: twice fp32's rate in fp16, no tensor cores"),
    GpuClass("GTX1660", "NVIDIA GeForce GTX 1660", 6, 5945, (7, 5), 10.0, 5.0, 192, DEVICES,
             "Turing architecture whitepaper: twice fp32's rate in fp16, no tensor cores", ("GTX1660Ti",)),
    GpuClass("RTX2080Ti", "NVIDIA GeForce RTX 2080 Ti", 11, 11018, (7, 5), 53.8, 13.4, 616, OOM,
             "Turing architecture whitepaper, table 4"),
    GpuClass("A100-40", "NVIDIA A100-SXM4-40GB", 40, 40377, (8, 0), 312, 19.5, 1555, DEVICES, "A100 data sheet",
             ("A100", "A100-40GB", "A100-40G", "A100-PCIE-40GB")),
    GpuClass("A100-80", "NVIDIA A100-SXM4-80GB", 80, 81222, (8, 0), 312, 19.5, 2039, DEVICES, "A100 data sheet",
             ("A100-80GB", "A100-80G", "A100 80GB PCIe")),
    GpuClass("RTX3060", "NVIDIA GeForce RTX 3060", 12, 11910, (8, 6), 25.5, 12.7, 360, DEVICES,
             "Ampere GA102 whitepaper: fp16 summed in fp32 at twice fp32's rate on GeForce"),
    GpuClass("RTX3090", "NVIDIA GeForce RTX 3090", 24, 24124, (8, 6), 71, 35.6, 936, DEVICES,
             "Ampere GA102 whitepaper, table 2"),
    GpuClass("A10", "NVIDIA A10", 24, 22508, (8, 6), 125, 31.2, 600, OOM, "A10 data sheet"),
    GpuClass("A10G", "NVIDIA A10G", 24, 22508, (8, 6), 70, 35, 600, OOM, "A10G in Amazon's G5 announcement"),
    GpuClass("A40", "NVIDIA A40", 48, 45363, (8, 6), 149.7, 37.4, 696, OOM, "A40 data sheet, ECC on"),
    GpuClass("A6000", "NVIDIA RTX A6000", 48, 45619, (8, 6), 154.8, 38.7, 768, OOM, "RTX A6000 data sheet, ECC on",
             ("RTXA6000",)),
    GpuClass("RTX4060", "NVIDIA GeForce RTX 4060", 8, 7806, (8, 9), 30.2, 15.1, 272, DEVICES,
             "Ada whitepaper: fp16 summed in fp32 at twice fp32's rate on GeForce", ("RTX4060-8",)),
    GpuClass("RTX4090", "NVIDIA GeForce RTX 4090", 24, 24081, (8, 9), 165.2, 82.6, 1008, DEVICES,
             "Ada whitepaper, table 2"),
    GpuClass("L4", "NVIDIA L4", 24, 22563, (8, 9), 121, 30.3, 300, DEVICES, "L4 data sheet, half of its sparse rate"),
    GpuClass("L40S", "NVIDIA L40S", 48, 45495, (8, 9), 362, 91.6, 864, DEVICES, "L40S data sheet"),
    GpuClass("H100", "NVIDIA H100 80GB HBM3", 80, 80995, (9, 0), 989, 67, 3350, OOM, "H100 SXM data sheet",
             ("H100-80", "H100-80GB")),
    GpuClass("H200", "NVIDIA H200", 141, 143073, (9, 0), 989, 67, 4800, OOM, "H200 data sheet", ("H200-141",)),
    GpuClass("B200", "NVIDIA B200", 180, 182630, (10, 0), 2250, 75, 7700, OOM, "DGX B200 data sheet, an eighth of it"),
    GpuClass("RTX5090", "NVIDIA GeForce RTX 5090", 32, 32117, (12, 0), 209.5, 104.8, 1792, QUERY,
             "RTX Blackwell whitepaper, table 3"),
)
# fmt: on
# Words of a device's full name that people leave out.
_BRANDS = re.compile(r"nvidia|tesla|geforce|quadro|sxm\d?|pcie|hbm\d?e?|[^a-z0-9]")


def _normalize(text: str) -> str:
    """`NVIDIA GeForce RTX 3090` and `rtx-3090` are both `rtx3090`; `A100-40GB` and `a100 40g` are both `a10040`."""
    return re.sub(r"(16|24|32|40|48|80)gb?$", r"\1", _BRANDS.sub("", text.lower()))


_BY_NAME = {_normalize(spelling): gpu for gpu in CATALOGUE for spelling in (gpu.name, gpu.device_name, *gpu.aliases)}


def find_class(name: str, *, where: str = "GPU class") -> GpuClass:
    """The class that people call so: `T4`, `tesla-t4`, `A100-40GB`, `GeForce-RTX-3090`.

    Args:
        name: As somebody wrote it.
        where: What an error begins with: the option or the key that the name stands in.

    Raises:
        ConfigError: No class is called so; with the nearest name.
    """
    found = _BY_NAME.get(_normalize(name))
    if found is not None:
        return found
    near = difflib.get_close_matches(_normalize(name), _BY_NAME, n=1)
    hint = f" Did you mean {_BY_NAME[near[0]].name}?" if near else ""
    raise ConfigError(f"{where}: must be one of {', '.join(gpu.name for gpu in CATALOGUE)}, got {name!r}.{hint}")


def recognize(device: DeviceProfile) -> GpuClass | None:
    """The class of a device that was probed; None where the catalogue has none like it."""
    name = _normalize(device.name)
    alike = [gpu for gpu in CATALOGUE if _normalize(gpu.device_name) == name or _normalize(gpu.name) == name]
    # An `A100` may say no size, or a size in other words.
    alike = alike or [gpu for gpu in CATALOGUE if name.startswith(_normalize(gpu.name))]
    near = [gpu for gpu in alike if abs(gpu.total_memory_bytes / device.total_memory_bytes - 1) <= SAME_MEMORY_SHARE]
    return min(near, key=lambda gpu: abs(gpu.total_memory_bytes - device.total_memory_bytes), default=None)


def is_called(device: DeviceProfile, name: str) -> bool:
    """Whether a device is of the class of that name; one that is not in the catalogue is known by a part of its own."""
    known = _BY_NAME.get(_normalize(name))
    if known is None:
        return bool(_normalize(name)) and _normalize(name) in _normalize(device.name)
    found = recognize(device)
    # A plain `A100` or `V100` is any of them.
    return found is not None and (found is known or found.name.lower().startswith(f"{name.lower()}-"))


def parse_gpus(text: str) -> list[tuple[GpuClass, int]]:
    """Reads `T4:2,A100-40:1,GTX1650`: classes, each with how many there are (1 unless said).

    Raises:
        ConfigError: A class is not known, a number is not one, or they are more GPUs than a plan is made for.
    """
    wanted: dict[GpuClass, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = item.partition(":")
        number = number.strip()
        if number and not (number.isascii() and number.isdigit() and number.strip("0")):
            raise ConfigError(f"--gpus: must be like T4:2,A100-40:1, got {item!r}. Write a number above 0.")
        gpu = find_class(name.strip(), where="--gpus")
        # Python does not read numbers of thousands of digits.
        digits = number.lstrip("0") or "1"
        count = int(digits) if len(digits) <= len(str(MAX_GPUS)) else MAX_GPUS + 1
        wanted[gpu] = wanted.get(gpu, 0) + count
    if not wanted:
        raise ConfigError(f"--gpus: must name at least one GPU, like T4:2,A100-40:1, got {text!r}.")
    if sum(wanted.values()) > MAX_GPUS:
        shown = shorten(text, MAX_SHOWN)
        raise ConfigError(f"--gpus: must be at most {format_count(MAX_GPUS)} GPUs in all, got {shown!r}. Name fewer.")
    return list(wanted.items())
