"""A mixture made of a dense Llama, for tools/route_noise.py where no small trained mixture is at hand.

As in Qwen1.5-MoE a shared expert does half of a layer's feed-forward and 4 others, here of 16, the other half. Each has
a random half of that half's inner entries, doubled, so that it is the half itself in the mean over experts. Routers are
random. The mixture is somewhat worse than the dense model.
"""

import shutil
from pathlib import Path
from typing import Any

EXPERTS, PER_TOKEN, PARTS = 16, 4, 2
LOGITS_DEVIATION = 1.5  # of routers, about


def cut_into_experts(dense: Path, target: Path) -> Path:
    """Writes a Qwen2-MoE with the dense model's attention, embeddings, norms and tokenizer."""
    import torch
    from transformers import LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

    llama = LlamaForCausalLM.from_pretrained(dense, dtype=torch.float32)
    options = llama.config.to_dict()
    inner = options["intermediate_size"]
    taken = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
             "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "bos_token_id",
             "eos_token_id", "pad_token_id")  # fmt: skip
    config = Qwen2MoeConfig(
        **{name: options[name] for name in taken if name in options},
        intermediate_size=inner,
        shared_expert_intermediate_size=inner // 2,
        moe_intermediate_size=inner // 2 // PARTS,
        num_experts=EXPERTS,
        num_experts_per_tok=PER_TOKEN,
        norm_topk_prob=True,
        qkv_bias=False,
    )
    mixture = Qwen2MoeForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mixture.load_state_dict(
            {name: value for name, value in llama.state_dict().items() if ".mlp." not in name}, strict=False
        )
        for layer, source in zip(mixture.model.layers, llama.model.layers, strict=True):
            _fill(layer.mlp, source.mlp, source.post_attention_layernorm.weight.norm(), generator)
    mixture.to(torch.bfloat16).save_pretrained(target)
    for file in dense.iterdir():
        if "token" in file.name or "template" in file.name:
            shutil.copy(file, target)
    return target


def _fill(mixture: Any, dense: Any, gain: Any, generator: Any) -> None:
    """`gain` is about the norm of what the router sees."""
    import torch

    gate, up, down = (getattr(dense, f"{name}_proj").weight for name in ("gate", "up", "down"))
    shared, experts = len(gate) // 2, mixture.experts
    mixture.gate.weight.copy_(torch.randn(mixture.gate.weight.shape, generator=generator) * LOGITS_DEVIATION / gain)
    mixture.shared_expert_gate.weight.zero_()  # halves what the shared expert gives
    mixture.shared_expert.gate_proj.weight.copy_(gate[:shared])
    mixture.shared_expert.up_proj.weight.copy_(up[:shared])
    mixture.shared_expert.down_proj.weight.copy_(2 * down[:, :shared])
    for expert in range(EXPERTS):
        rows = shared + torch.randperm(shared, generator=generator)[: shared // PARTS]
        experts.gate_up_proj[expert].copy_(torch.cat((gate[rows], up[rows])))
        experts.down_proj[expert].copy_(PARTS * down[:, rows])
