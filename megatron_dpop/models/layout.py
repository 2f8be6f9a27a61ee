"""What a Megatron layer must know of a row: what each token sees and at which position it stands."""

from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_dpop.rows.context import AttentionPlan


@dataclass
class RowLayout(PackedSeqParams):
    """Carried to attention and rotary embedding by Megatron's own `packed_seq_params` argument.

    `positions` is int64 [tokens / cp], counted from the start of each token's trunk; `attention` says which of the
    row's keys this rank's tokens see. `cosines` and `sines` of the positions' angles are fp32
    [tokens / cp, 1, head_dim / 2]; each pipeline stage's `RowRotaryEmbedding` fills them in.
    """

    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    attention: AttentionPlan = field(default_factory=lambda: AttentionPlan((), (), ()))
    cosines: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    sines: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        # Megatron's "thd" branches assume flat sequences that start at position 0; a row keeps [tokens, 1, ...].
        self.qkv_format = "sbhd"
