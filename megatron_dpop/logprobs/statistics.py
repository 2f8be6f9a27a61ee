"""Running softmax statistics of a row of logits: merged over vocabulary blocks, then over tensor ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# exp of anything below this is zero in fp64 too; keeps `shift * 0` from becoming `-inf * 0`.
_SMALLEST_SHIFT = -1.0e4


@dataclass
class SoftmaxStatistics:
    """Per row: what log-softmax at the target needs. All [rows], in the accumulation dtype."""

    maximum: Tensor
    sum_exp: Tensor
    """sum of exp(logit - maximum)."""
    target_logit: Tensor
    """Zero where the target is not in the part of the vocabulary seen so far."""
    sum_exp_log: Tensor | None
    """sum of exp(logit - maximum) * (logit - maximum); only where the entropy is asked for."""

    @classmethod
    def empty(cls, rows: int, dtype: torch.dtype, device: torch.device, *, entropy: bool) -> SoftmaxStatistics:
        """Starts from no logits: the smallest finite maximum instead of -inf, which would make -inf - -inf."""
        zeros = torch.zeros(rows, dtype=dtype, device=device)
        maximum = torch.full_like(zeros, torch.finfo(dtype).min)
        return cls(maximum, zeros, zeros.clone(), zeros.clone() if entropy else None)

    def add_block(self, logits: Tensor, column: Tensor, inside: Tensor) -> None:
        """Takes in a tile of logits [rows, columns], which it overwrites.

        column: int64 [rows], the target's column, clamped into the tile; inside: bool [rows], whether it
        lies in this tile.
        """
        target = logits.gather(1, column[:, None]).squeeze(1)
        self.target_logit = torch.where(inside, target, self.target_logit)
        maximum = torch.maximum(self.maximum, logits.amax(1))
        exp = logits.sub_(maximum[:, None]).exp_()
        shift = (self.maximum - maximum).clamp(min=_SMALLEST_SHIFT)
        if self.sum_exp_log is not None:
            # entr(x) = -x log x, and zero at zero, where the logit is -inf.
            block = -torch.special.entr(exp).sum(1)
            self.sum_exp_log = (self.sum_exp_log + shift * self.sum_exp) * shift.exp() + block
        self.sum_exp = self.sum_exp * shift.exp() + exp.sum(1)
        self.maximum = maximum

    def packed(self) -> Tensor:
        """[3 or 4, rows], for one collective."""
        parts = [self.maximum, self.sum_exp, self.target_logit]
        return torch.stack(parts if self.sum_exp_log is None else [*parts, self.sum_exp_log])


@dataclass(frozen=True)
class TargetScores:
    """Log-softmax at the targets, over the whole vocabulary. All [rows]."""

    logprobs: Tensor
    log_sum_exp: Tensor
    is_top1: Tensor
    """bool: no logit is larger than the target's."""
    entropy: Tensor | None
    """nats."""


def merge_ranks(packed: Tensor, group: dist.ProcessGroup | None) -> TargetScores:
    """Statistics of all shards -> scores, with one all-gather.

    A gather and a sum in the order of ranks: the bits of an all-reduced sum may depend on where in the buffer
    a number lies, these do not, and every rank gets the same.
    """
    shards = [packed]
    if group is not None and dist.get_world_size(group) > 1:
        shards = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
        dist.all_gather(shards, packed.contiguous(), group=group)
    maximum = torch.stack([shard[0] for shard in shards]).amax(0)
    sum_exp = torch.zeros_like(maximum)
    target_logit = torch.zeros_like(maximum)
    sum_exp_log = torch.zeros_like(maximum)
    for shard in shards:
        shift = (shard[0] - maximum).clamp(min=_SMALLEST_SHIFT)
        sum_exp += shard[1] * shift.exp()
        target_logit += shard[2]
        if len(shard) == 4:
            sum_exp_log += (shard[3] + shift * shard[1]) * shift.exp()
    log_sum = sum_exp.log()
    return TargetScores(
        logprobs=(target_logit - maximum) - log_sum,
        log_sum_exp=maximum + log_sum,
        is_top1=target_logit >= maximum,
        entropy=log_sum - sum_exp_log / sum_exp if len(packed) == 4 else None,
    )
