"""Log-probabilities of chosen targets in a plain Megatron-Core model, without this project's trainer.

`vocab_parallel_linear_logprobs` takes the last hidden states and the output layer's weight, and never holds all logits.
Here it is compared with Megatron-Core's own cross entropy, which does. One process on a CPU or a GPU.
"""

import os
import tempfile

import torch
import torch.distributed as dist

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:  # Megatron-Core names CUDA devices; on a CPU those names must mean the CPU first
    from megatron_dpop.runtime import cpu_backend

    cpu_backend.install()
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_dpop import vocab_parallel_linear_logprobs

VOCABULARY, TOKENS = 512, 64


def scored_logprobs(
    *, hidden_states: Tensor, output_layer: torch.nn.Module, output_weight: Tensor | None, context: Tensor, **_: object
) -> Tensor:
    """Megatron's `output_processor`: the log-probability of each target, fp32 [tokens]. hidden_states [tokens, 1, H]"""
    return vocab_parallel_linear_logprobs(
        hidden_states.squeeze(1),
        output_layer.weight if output_weight is None else output_weight,  # given where it is tied to the embedding
        context,
        vocab_size=VOCABULARY,
        tp_group=parallel_state.get_tensor_model_parallel_group(),
    )


def main() -> None:
    device = torch.device("cpu" if not HAS_GPU else "cuda")
    os.environ["LOCAL_RANK"] = "0"
    with tempfile.NamedTemporaryFile() as meeting:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", f"file://{meeting.name}", rank=0, world_size=1
        )
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(0)
        torch.manual_seed(0)
        model = GPTModel(
            TransformerConfig(
                num_layers=2,
                hidden_size=64,
                num_attention_heads=4,
                hidden_dropout=0.0,
                attention_dropout=0.0,
                use_cpu_initialization=True,
            ),
            get_gpt_layer_local_spec(),
            vocab_size=VOCABULARY,
            max_sequence_length=TOKENS,
        ).to(device)
        tokens, targets = torch.randint(VOCABULARY, (2, 1, TOKENS), device=device)
        positions = torch.arange(TOKENS, device=device)[None]
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=device).triu(1)[None, None]
        ours = model(
            tokens, positions, mask, output_processor=scored_logprobs, output_processor_context=targets.flatten()
        )
        megatrons = -model(tokens, positions, mask, labels=targets).flatten()
        difference = (ours - megatrons).abs().max().item()
        print(f"{TOKENS} targets: log-probabilities differ from Megatron-Core's by {difference:.1e} nats at most")
        ours.sum().backward()
        print(f"gradient of the output layer: {model.output_layer.weight.grad.norm():.3f}")
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        if difference > 1e-4:
            raise SystemExit("they are not the same")


if __name__ == "__main__":
    main()
