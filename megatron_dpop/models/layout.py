"""What a Megatron layer must know of a row: what each token sees and at which position it stands."""

from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_dpop.models.varlen import DeviceBlocks, blocks_on
from megatron_dpop.rows.context import AttentionPlan


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the tokens' angles, fp32 [tokens / cp, 1, rotary_dim / 2], and what they turn."""

    cosines: torch.Tensor
    sines: torch.Tensor
    interleaved: bool = False


@dataclass(frozen=True)
class RowRoutes:
    """The experts that some of a row's tokens go to, as the routers of this rank's layers fill them in."""

    tokens: torch.Tensor  # int64 [tokens], index into what the routers see of the row
    codes: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer, from 0: int32 [tokens], one a set


@dataclass(frozen=True)
class RowExamples:
    """Whose the tokens are that this rank's routers see, for the routers' own losses, which they fill in."""

    example: torch.Tensor  # int64 [tokens], index into the row's examples
    share: torch.Tensor  # fp32 [tokens], of its example; over all ranks that share the row an example's add up to 1
    examples: int  # of the row
    of_step: int  # examples of the whole step
    losses: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer, from 0: fp32 [2], balance and z


@dataclass
class RowLayout(PackedSeqParams):
    """Carried to attention and rotary embedding by Megatron's own `packed_seq_params` argument.

    `positions` is int64 [tokens / cp], counted from the start of each token's trunk; `attention` says which of the
    row's keys this rank's tokens see. Each pipeline stage's `RowRotaryEmbedding` fills in the rotation of the row's
    positions, and that of layers that slide a window.
    """

    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    attention: AttentionPlan = field(default_factory=lambda: AttentionPlan((), (), ()))
    rotation: Rotation | None = None
    sliding_rotation: Rotation | None = None

    routes: RowRoutes | None = None  # of models with experts
    examples: RowExamples | None = None  # where routers have losses

    _blocks: DeviceBlocks | None = None

    def blocks(self, device: torch.device) -> DeviceBlocks:
        """The attention's blocks for the GPU's kernels, made by the first layer that asks."""
        if self._blocks is None:
            self._blocks = blocks_on(self.attention, device)
        return self._blocks

    def __post_init__(self) -> None:
        # Megatron's "thd" branches assume flat sequences that start at position 0; a row keeps [tokens, 1, ...].
        self.qkv_format = "sbhd"
