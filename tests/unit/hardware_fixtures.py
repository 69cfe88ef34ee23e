"""Nodes, models and demands that are written down, for the tests of the planner: no GPU and no cluster is needed."""

from __future__ import annotations

from qlora_ray.config.schema import Cluster, Quantization
from qlora_ray.hardware import DeviceProfile, ModelShape, NodeProfile, Plan, TrialDemand, plan_placements

GIB = 1024**3
# name -> (total GiB as torch reports it, compute capability), smallest first.
GPUS = {
    "NVIDIA GeForce GTX 1650": (3.8, (7, 5)),
    "Tesla T4": (14.6, (7, 5)),
    "Tesla V100-SXM2-16GB": (15.8, (7, 0)),
    "NVIDIA A10G": (22.1, (8, 6)),
    "NVIDIA GeForce RTX 3090": (23.7, (8, 6)),
    "NVIDIA A100-SXM4-80GB": (79.3, (8, 0)),
    "NVIDIA H100 80GB HBM3": (79.1, (9, 0)),
    "NVIDIA H200": (139.8, (9, 0)),
}
# The silicon has bf16 from Ampere on: docs.nvidia.com/cuda/cuda-c-programming-guide, "Compute Capabilities".
EXPECTED_PRECISION = {name: "bf16" if capability >= (8, 0) else "fp16" for name, (_, capability) in GPUS.items()}


def config(hidden, intermediate, layers, heads, kv_heads, vocabulary, *, tied, model_type="qwen2"):
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


def shape(*sizes, **settings):
    return ModelShape.from_hf_config(config(*sizes, **settings))


TINY = shape(192, 512, 4, 6, 6, 1024, tied=True, model_type="llama")
QWEN_HALF_B = shape(896, 4864, 24, 14, 2, 151936, tied=True)
QWEN_3B = shape(2048, 11008, 36, 16, 2, 151936, tied=True)
LLAMA_8B = shape(4096, 14336, 32, 32, 8, 128256, tied=False, model_type="llama")
# Wide enough that a CPU's threads share its layers well.
WIDE = shape(1024, 2816, 4, 16, 16, 1024, tied=True, model_type="llama")
SHAPES = {"tiny": TINY, "0.5b": QWEN_HALF_B, "3b": QWEN_3B, "8b": LLAMA_8B}
DEMAND = TrialDemand(
    effective_batch=16, per_device_train_batch_size=4, max_seq_length=512, gradient_checkpointing=True, eval_batch=8
)


def gpu(name: str, *, index: int = 0, free_gib: float | None = None) -> DeviceProfile:
    total_gib, capability = GPUS[name]
    free_bytes = int((total_gib - 0.2 if free_gib is None else free_gib) * GIB)
    return DeviceProfile(index, "cuda", name, capability, int(total_gib * GIB), free_bytes)


def cpu(*, num_cpus: int, ram_gib: float) -> DeviceProfile:
    return DeviceProfile(0, "cpu", f"AMD EPYC, {num_cpus} CPUs", None, int(ram_gib * GIB), int(ram_gib * GIB))


def node(hostname: str, *devices: DeviceProfile, num_cpus: int = 16, ram_gib: float = 128) -> NodeProfile:
    return NodeProfile(
        hostname=hostname,
        devices=devices,
        cpu_name="AMD EPYC",
        num_cpus=num_cpus,
        ram_bytes=int(ram_gib * GIB),
        available_ram_bytes=int(ram_gib * GIB),
        packages={"trl": "1.16.0"},
    )


def cpu_node(hostname: str = "head", *, num_cpus: int = 2, ram_gib: float = 16) -> NodeProfile:
    return node(hostname, cpu(num_cpus=num_cpus, ram_gib=ram_gib), num_cpus=num_cpus, ram_gib=ram_gib)


def plan(*nodes: NodeProfile, model=QWEN_HALF_B, demand=DEMAND, quantization=None, precision="auto", **cluster) -> Plan:
    return plan_placements(
        nodes,
        shape=model,
        demand=demand,
        cluster=Cluster(**cluster),
        quantization=quantization or Quantization(),
        precision_requested=precision,
    )


MIXED = (
    node("10.0.0.4", gpu("Tesla T4")),
    node("10.0.0.5", gpu("NVIDIA A100-SXM4-80GB"), gpu("NVIDIA A100-SXM4-80GB", index=1)),
    node("10.0.0.6", gpu("NVIDIA H200")),
    cpu_node(),
)
