"""A layout and everything else that one chooses to make a model fit: what the search varies."""

from dataclasses import dataclass
from typing import Literal

from dpop_base.architectures import Architecture
from dpop_base.errors import UserError
from megatron_dpop.config.layout import ModelLayout, check_layout, check_row_tokens, padded_key_value_heads
from megatron_dpop.config.precision import check_fp8_shape
from megatron_dpop.config.schema import LoraConfig

Params = Literal["bf16", "fp32"]
Recompute = Literal["none", "selective", "full"]
BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class LayoutChoice(ModelLayout):
    """How a model is trained: parallel sizes, precision, and what is traded for memory."""

    sequence: bool = True
    data: int = 1
    params: Params = "bf16"
    fp8: bool = False  # linear layers of the transformer multiply in FP8
    fp8_blockwise: bool = False  # with scales by block, which cost more
    fp8_params: bool = False  # and keep no bf16 copy of their weights
    recompute: Recompute = "none"
    distributed_optimizer: bool = True
    optimizer_state: Params = "fp32"  # precision of AdamW's moments
    offload_optimizer: bool = False  # master weights and moments in the host's memory
    overlap: bool = True  # data-parallel communication with computation
    lora: LoraConfig | None = None  # adapters alone are trained
    freeze_router: bool = False
    attention_kernel: Literal["flash", "cudnn"] = "flash"

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def chunks(self) -> int:
        return self.virtual_pipeline or 1

    @property
    def bytes(self) -> int:
        """Returns the bytes of an entry of a weight or an activation."""
        return BYTES[self.params]

    @property
    def sequence_shards(self) -> int:
        """Over how many tensor-parallel ranks tokens are split outside the linear layers."""
        return self.tensor if self.sequence else 1

    @property
    def data_shards(self) -> int:
        """Ranks with the same weights: over them gradients are summed and the optimizer's state is split."""
        return self.data * self.context

    @property
    def expert_data_shards(self) -> int:
        """Ranks with the same experts, over which the experts' gradients and optimizer state are shared."""
        return self.devices // (self.pipeline * self.expert * self.expert_tensor)


@dataclass(frozen=True)
class Widths:
    """Entries per token of a layer's tensors on one tensor-parallel rank."""

    hidden: int
    query: int
    key: int  # and of the values
    ffn: int
    heads: int
    head_dim: int

    @staticmethod
    def of(architecture: Architecture, choice: LayoutChoice) -> "Widths":
        kv_heads = padded_key_value_heads(architecture, choice)
        heads = kv_heads * (architecture.num_attention_heads // architecture.num_key_value_heads)
        return Widths(
            hidden=architecture.hidden_size,
            query=heads * architecture.head_dim // choice.tensor,
            key=kv_heads * architecture.head_dim // choice.tensor,
            ffn=architecture.ffn_hidden_size // choice.tensor,
            heads=heads // choice.tensor,
            head_dim=architecture.head_dim,
        )


def check_choice(architecture: Architecture, choice: LayoutChoice, *, capacity_tokens: int) -> None:
    """Raises UserError where the model or its rows cannot be cut or computed this way, whatever the device."""
    check_layout(architecture, choice)
    stage = choice.devices // choice.pipeline
    if stage % (choice.expert * choice.expert_tensor):
        raise UserError(
            f"parallel.expert, parallel.expert_tensor: {choice.expert} x {choice.expert_tensor} ranks share the "
            f"experts, which does not divide the {stage} ranks of a pipeline stage; use divisors, or more ranks"
        )
    check_row_tokens(capacity_tokens, choice)
    if choice.fp8:
        check_fp8_shape(architecture, choice)
