"""Devices and networks as their makers state them, and what share of that a training step is assumed to reach."""

import re
from dataclasses import dataclass, replace

GIB = 1 << 30


@dataclass(frozen=True)
class Hardware:
    """One device, in nodes of `node_devices` joined by NVLink, nodes joined by a network with one port a device.

    Rates are per second, bandwidths in bytes and one direction. FLOPs are of dense products, bf16 operands.
    """

    name: str
    memory_bytes: int  # what CUDA reports as the device's total
    bf16_flops: float
    fp8_flops: float | None  # None: no FP8 units
    memory_bandwidth: float
    node_bandwidth: float  # NVLink
    network_bandwidth: float  # InfiniBand or RoCE
    host_bandwidth: float  # PCIe
    node_devices: int = 8


# NVIDIA's data sheets (SXM boards; their FLOPs with sparsity halved, NVLink's two directions halved) and the
# networks of NVIDIA's DGX machines: 400 Gb/s a device for H100 and H200, 200 Gb/s for A100.
DEVICES = {
    "h100": Hardware(
        name="H100-80GB",
        memory_bytes=int(79.1 * GIB),
        bf16_flops=989e12,
        fp8_flops=1979e12,
        memory_bandwidth=3.35e12,
        node_bandwidth=450e9,
        network_bandwidth=50e9,
        host_bandwidth=64e9,
    ),
    "h200": Hardware(
        name="H200",
        memory_bytes=int(139.8 * GIB),
        bf16_flops=989e12,
        fp8_flops=1979e12,
        memory_bandwidth=4.8e12,
        node_bandwidth=450e9,
        network_bandwidth=50e9,
        host_bandwidth=64e9,
    ),
    "a100": Hardware(
        name="A100-80GB",
        memory_bytes=int(79.2 * GIB),
        bf16_flops=312e12,
        fp8_flops=None,
        memory_bandwidth=2.04e12,
        node_bandwidth=300e9,
        network_bandwidth=25e9,
        host_bandwidth=32e9,
    ),
}


SLOWER_FORMS = {"PCIE", "NVL"}


def known_device(name: str) -> Hardware | None:
    """The stated device whose model is in CUDA's name for it; its slower forms (PCIe, NVL) are none of these."""
    words = set(re.split(r"[\s-]+", name.upper()))
    if words & SLOWER_FORMS:
        return None
    return next((device for key, device in DEVICES.items() if key.upper() in words), None)


def device_like(name: str, memory_bytes: int) -> Hardware:
    """The known device of that name, or H100's rates, with the memory that it really has."""
    return replace(known_device(name) or DEVICES["h100"], name=name, memory_bytes=memory_bytes)


@dataclass(frozen=True)
class Assumptions:
    """Shares of the stated rates that a step reaches, and memory that no formula covers.

    The first group is fitted to published measurements (docs/plan.md) but where it says otherwise.
    """

    linear: float = 0.64  # products of activations and weights, of large matrices; grouped ones of experts too
    fp8_linear: float = 0.63  # quantisation included
    fp8_blockwise_linear: float = 0.52  # measured on one H100 (docs/gpu_results.md)
    product_depth: float = 384.0  # a product over k entries takes (k + this) / k of the time: narrow ones are slower
    attention: float = 0.37  # FlashAttention 2, of long sequences
    cudnn_attention: float = 0.48
    attention_keys: float = 280.0  # attention over n keys a query, on average, takes (n + this) / n of the time
    chunk_seconds: float = (
        2e-5  # of a pipeline, for every pass of a row through a chunk of its layers: thin ones add up
    )

    memory: float = 0.90  # element-wise work and the optimizer
    collectives: float = 0.80
    context_bytes: int = int(1.5 * GIB)  # CUDA context, kernels, libraries' workspaces
    communicator_bytes: int = GIB // 4  # NCCL's buffers, per group of several ranks that a device is in
    fragmentation: float = 0.05  # of activations and temporaries: what the caching allocator cannot reuse
    spare: float = 0.03  # of a device's memory, left free by what is recommended


ASSUMPTIONS = Assumptions()
