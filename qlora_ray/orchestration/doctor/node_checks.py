"""What the facts of one node say: a finding each, with how to mend it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qlora_ray.formats import format_bytes
from qlora_ray.orchestration.doctor.facts import NodeFacts
from qlora_ray.orchestration.doctor.findings import COMPARED_PACKAGES, Finding, Situation, Status

# A base of 7 B parameters is 15 GB in the cache; below the first a small one does not fit.
LEAST_FREE_BYTES, GOOD_FREE_BYTES = 2 * 1024**3, 20 * 1024**3
# Of the private Ray of a sweep; in less Ray puts its objects on the disk.
LEAST_SHM_BYTES = 256 * 1024**2
# Ray's own advice for nodes of a cluster.
GOOD_OPEN_FILES, LEAST_OPEN_FILES = 65_536, 4_096
# Deadlines of drained nodes are told as times of day; events of nodes are ordered by them.
GOOD_CLOCK_S, LEAST_CLOCK_S = 2.0, 60.0


def _check_token_file(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    if node.ray_token == "file that others may read":
        text = "other users of the machine may read Ray's token"
        yield Finding("token", Status.WARNING, text, node.name, "chmod 600 ~/.ray/auth_token")


def _check_packages(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    missing = [name for name in COMPARED_PACKAGES if node.packages.get(name) is None]
    if missing:
        mend = "pip install -c constraints.txt -e ."
        yield Finding("packages", Status.PROBLEM, f"not installed: {', '.join(missing)}", node.name, mend)
    elif not situation.is_cluster:
        names = ", ".join(f"{name} {node.packages[name]}" for name in ("ray", "torch", "bitsandbytes"))
        yield Finding("packages", Status.OK, f"Python {node.python}, qlora_ray {node.package}, {names}", node.name)


def _check_driver(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    num_seen = sum(device.kind == "cuda" for device in node.devices)
    if not node.driver_gpus:
        yield Finding("GPUs", Status.OK, "no GPU: trials train on the CPU", node.name)
    elif not num_seen:
        if node.torch_cuda is None:
            text = f"the driver has {len(node.driver_gpus)}, but this torch is a CPU build"
            mend = "Install the CUDA build of the same torch, as PyTorch's install page shows."
        else:
            text = f"the driver has {len(node.driver_gpus)}, but torch, built for CUDA {node.torch_cuda}, sees none"
            mend = "Update the driver, and look at CUDA_VISIBLE_DEVICES where Ray is started."
        yield Finding("GPUs", Status.PROBLEM, text, node.name, mend)
    else:
        hidden = len(node.driver_gpus) - num_seen
        text = f"{num_seen} of {len(node.driver_gpus)} visible, driver {node.driver}, torch for CUDA {node.torch_cuda}"
        mend = "CUDA_VISIBLE_DEVICES hides the others." if hidden > 0 else ""
        yield Finding("GPUs", Status.OK, text, node.name, mend)


def _check_devices(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    for device in node.devices:
        what = device.name + (f", compute capability {device.capability}" if device.capability else "")
        if device.problem is not None:
            mend = "Free the device, or install a torch that has kernels for it."
            yield Finding("device", Status.PROBLEM, f"{what}: {device.problem}", node.name, mend)
        elif device.step_problem is not None:
            yield Finding(
                "device",
                Status.PROBLEM,
                f"{what}: a step of bitsandbytes fails: {device.step_problem}",
                node.name,
                "python -m bitsandbytes says what its build looks for; install the one of constraints.txt.",
            )
        else:
            text = f"{what}: a 4-bit layer and 8-bit AdamW trained a step; {device.precision}"
            yield Finding("device", Status.OK, text, node.name)


def _check_storage(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    if node.sees_marker is False:
        text = f"does not see {situation.shared}"
        mend = "Put results.dir on storage that all nodes share at one path (NFS, a mounted bucket)."
        yield Finding("storage", Status.PROBLEM, text, node.name, mend)
    elif node.is_writable is False:
        mend = "Give the user that Ray runs as the right to write there."
        yield Finding("storage", Status.PROBLEM, f"{situation.shared} cannot be written", node.name, mend)
    elif node.is_writable:
        seen = "is shared and can be written" if node.sees_marker else "can be written"
        yield Finding("storage", Status.OK, f"{situation.shared} {seen}", node.name)


def _check_hub(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    token = "a token is found" if node.has_hub_token else "no token, which gated and private models need"
    yield Finding("hub", Status.OK, f"cache {node.hub_cache}; {token}", node.name)


def _check_disks(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    for folder, free in node.free_bytes.items():
        if free >= GOOD_FREE_BYTES:
            continue
        status = Status.PROBLEM if free < LEAST_FREE_BYTES else Status.WARNING
        mend = "Free some, or set HF_HOME, TMPDIR or results.dir to a larger disk."
        yield Finding("disk", status, f"{format_bytes(free)} free at {folder}", node.name, mend)
    if node.free_bytes and min(node.free_bytes.values()) >= GOOD_FREE_BYTES:
        yield Finding("disk", Status.OK, f"at least {format_bytes(min(node.free_bytes.values()))} free", node.name)


def _check_shm(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    if node.shm_bytes is None:
        return
    if node.shm_bytes < LEAST_SHM_BYTES:
        yield Finding(
            "/dev/shm",
            Status.WARNING,
            f"{format_bytes(node.shm_bytes)}, and Ray's object store wants {format_bytes(LEAST_SHM_BYTES)}",
            node.name,
            "Start the container with --shm-size=1g (Kubernetes: an emptyDir of medium Memory at /dev/shm).",
        )
    else:
        yield Finding("/dev/shm", Status.OK, format_bytes(node.shm_bytes), node.name)


def _check_open_files(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    if node.open_files is None:
        return
    # A limit that is none is told as the largest number, or as a negative one.
    is_none = node.open_files < 0 or node.open_files >= 2**62
    text = "no limit" if is_none else f"at most {node.open_files:,} in a process"
    if (
        is_none
        or node.open_files >= GOOD_OPEN_FILES
        or (not situation.is_cluster and node.open_files >= LEAST_OPEN_FILES)
    ):
        yield Finding("open files", Status.OK, text, node.name)
    else:
        status = Status.PROBLEM if node.open_files < LEAST_OPEN_FILES // 4 else Status.WARNING
        mend = f"ulimit -n {GOOD_OPEN_FILES} where Ray is started (limits.conf, or docker run --ulimit nofile)."
        yield Finding("open files", status, text, node.name, mend)


def _check_clock(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    if node.clock_s is None:
        return
    sure_s = max(0.0, abs(node.clock_s) - (node.clock_error_s or 0.0))
    if sure_s <= GOOD_CLOCK_S:
        yield Finding("clock", Status.OK, f"within {GOOD_CLOCK_S:g} s of this machine's", node.name)
        return
    status = Status.PROBLEM if sure_s > LEAST_CLOCK_S else Status.WARNING
    text = f"{abs(node.clock_s):.0f} s {'ahead of' if node.clock_s > 0 else 'behind'} this machine's"
    yield Finding("clock", status, text, node.name, "Let NTP set it (timedatectl set-ntp true).")


def _check_niceness(node: NodeFacts, situation: Situation) -> Iterator[Finding]:
    if node.niceness is None:
        return
    text = f"Ray's workers run at nice {node.niceness}"
    is_busy = node.load is not None and node.num_cpus is not None and node.load > node.num_cpus
    if node.niceness > 0 and is_busy:
        text += f", and {node.load:.1f} processes want {node.num_cpus} CPUs: beside those they hardly run"
        mend = "Start Ray, or the sweep, with RAY_worker_niceness=0."
        yield Finding("niceness", Status.WARNING, text, node.name, mend)
    else:
        yield Finding("niceness", Status.OK, text, node.name)


NODE_CHECKS: tuple[Callable[[NodeFacts, Situation], Iterator[Finding]], ...] = (
    _check_packages,
    _check_driver,
    _check_devices,
    _check_storage,
    _check_hub,
    _check_disks,
    _check_shm,
    _check_open_files,
    _check_clock,
    _check_niceness,
    _check_token_file,
)
