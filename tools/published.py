"""Published measurements of training on H100s, beside what `megatron-dpop plan` computes for the same configuration.

    python tools/published.py        # the table of docs/plan.md

Each point is one line of a page that its maker publishes. What is trained there is no preference loss: plain
sequences, all of whose tokens are scored, packed to the stated length. Their output layer keeps its logits, ours
computes them once more in the backward pass, which counts against us.
"""

from dataclasses import dataclass, replace

from dpop_base.architectures import Architecture
from dpop_base.architectures.architecture import Experts
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.activations import TRANSFORMER_ENGINE
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.hardware import ASSUMPTIONS, DEVICES, Assumptions
from megatron_dpop.plan.step_time import step_time
from megatron_dpop.plan.workload import ExampleCost, Workload

TOLERANCE = 0.20


def _llama(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocabulary: int) -> Architecture:
    return Architecture(
        family="llama",
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        norm_epsilon=1e-5,
        rope_theta=5e5,
    )


MODELS = {
    "Llama 2 7B": _llama(32, 4096, 11008, 32, 32, 32000),
    "Llama 2 13B": _llama(40, 5120, 13824, 40, 40, 32000),
    "Llama 2 70B": _llama(80, 8192, 28672, 64, 8, 32000),
    "Llama 3 8B": _llama(32, 4096, 14336, 32, 8, 128256),
    "Llama 3 70B": _llama(80, 8192, 28672, 64, 8, 128256),
    "Qwen3 30B-A3B": replace(
        _llama(48, 2048, 6144, 32, 4, 151936),
        family="qwen3_moe",
        head_dim=128,
        qk_norm=True,
        experts=Experts(count=128, per_token=8, ffn_hidden_size=768, shares_sum_to_one=True),
    ),
}


@dataclass(frozen=True)
class Published:
    """One line of a published table, all on H100-80GB."""

    model: str
    task: str
    source: str
    tokens_per_second: float  # of a GPU
    gpus: int
    sequences: int  # of a step
    length: int
    fp8: bool = True
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    virtual_pipeline: int | None = None
    expert: int = 1


NEMO = "NeMo 24.12"
BRIDGE = "Megatron Bridge 25.11"
BRIDGE_26 = "Megatron Bridge 26.02"
TITAN = "torchtitan"
AUTOMODEL = "NeMo Automodel"

POINTS = (
    Published("Llama 2 7B", "pretraining", NEMO, 16934, 8, 128, 4096),
    Published("Llama 2 13B", "pretraining", NEMO, 8715, 16, 128, 4096, pipeline=4, virtual_pipeline=10),
    Published("Llama 2 70B", "pretraining", NEMO, 1728, 64, 128, 4096, tensor=4, pipeline=4, virtual_pipeline=20),
    Published("Llama 3 8B", "pretraining", NEMO, 12273, 8, 128, 8192, context=2),
    Published(
        "Llama 3 70B", "pretraining", NEMO, 1524, 64, 128, 8192, tensor=4, pipeline=4, context=2, virtual_pipeline=5
    ),
    Published("Llama 2 7B", "SFT", NEMO, 16891, 8, 32, 4096),
    Published("Llama 2 13B", "SFT", NEMO, 10176, 8, 32, 4096, pipeline=4, virtual_pipeline=10),
    Published("Llama 2 70B", "SFT", NEMO, 1816, 16, 32, 4096, tensor=4, pipeline=4, virtual_pipeline=20),
    Published("Llama 2 7B", "LoRA", NEMO, 24824, 8, 32, 4096),
    Published("Llama 2 13B", "LoRA", NEMO, 14629, 8, 32, 4096),
    Published("Llama 2 70B", "LoRA", NEMO, 2621, 8, 32, 4096, tensor=2, pipeline=4, virtual_pipeline=20),
    Published("Llama 3 8B", "pretraining", BRIDGE, 14451, 8, 128, 8192),
    Published("Llama 3 70B", "pretraining", BRIDGE, 1602, 64, 128, 8192, tensor=4, pipeline=8, virtual_pipeline=5),
    Published("Llama 3 70B", "pretraining", BRIDGE_26, 1621, 64, 256, 8192, tensor=4, pipeline=8, virtual_pipeline=5),
    Published("Llama 3 70B", "SFT", BRIDGE_26, 1638, 32, 32, 4096, tensor=4, pipeline=4, virtual_pipeline=5),
    Published("Llama 3 70B", "LoRA", BRIDGE_26, 2643, 8, 32, 4096, tensor=2, pipeline=4, virtual_pipeline=20),
    Published("Llama 3 8B", "pretraining", TITAN, 8532, 8, 8, 8192),
    Published("Llama 3 8B", "pretraining", TITAN, 6667, 8, 8, 8192, fp8=False),
    # Its own layout is FSDP, which we do not have: Megatron Bridge's for the same task stands in.
    Published("Llama 3 70B", "SFT", AUTOMODEL, 867, 32, 32, 4096, fp8=False, tensor=4, pipeline=4, virtual_pipeline=5),
    Published("Llama 3 8B", "LoRA", AUTOMODEL, 12473, 1, 32, 4096, fp8=False),
    # Its weights are FSDP's too, and its all-to-all is DeepEP's.
    Published("Qwen3 30B-A3B", "pretraining", AUTOMODEL, 12040, 8, 512, 4096, fp8=False, expert=8),
)


def planned(point: Published, assumptions: Assumptions = ASSUMPTIONS) -> float:
    """Tokens a second of a GPU, by the plan's arithmetic."""
    cost = ExampleCost(
        tokens=float(point.length), scores=float(point.length), attended=point.length * (point.length + 1) / 2
    )
    choice = LayoutChoice(
        tensor=point.tensor,
        pipeline=point.pipeline,
        context=point.context,
        expert=point.expert,
        virtual_pipeline=point.virtual_pipeline,
        data=point.gpus // (point.tensor * point.pipeline * point.context),
        fp8=point.fp8,
        attention_kernel="cudnn",
        overlap_tensor=point.tensor > 1,  # as NVIDIA's recipes for these do
        lora=LoraConfig() if point.task.startswith("LoRA") else None,
    )
    work = Workload(examples=point.sequences, capacity_tokens=point.length, packed=cost, unshared=cost)
    time = step_time(MODELS[point.model], work, choice, DEVICES["h100"], TRANSFORMER_ENGINE, assumptions)
    return time.tokens_per_second / point.gpus


def table() -> str:
    lines = [
        "| model | task | layout | precision | published by | tokens/s of a GPU | plan | plan / published |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for point in POINTS:
        found = planned(point)
        layout = f"{point.gpus} GPUs, {point.sequences} x {point.length}"
        names = ("tensor", "pipeline", "virtual_pipeline", "context", "expert")
        sizes = {name: getattr(point, name) for name in names}
        layout += "".join(f", {name} {size}" for name, size in sizes.items() if size and size > 1)
        precision = "FP8" if point.fp8 else "bf16"
        lines.append(
            f"| {point.model} | {point.task} | {layout} | {precision} | {point.source} | "
            f"{point.tokens_per_second:,.0f} | {found:,.0f} | {found / point.tokens_per_second:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
