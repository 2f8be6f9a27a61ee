"""This process among all, as its launcher tells it by environment variables. No torch here."""

import os
from dataclasses import dataclass

from checkpoint_convert.errors import UserError


@dataclass(frozen=True)
class Rank:
    """As torchrun numbers it."""

    rank: int
    world_size: int
    local_rank: int

    @staticmethod
    def from_environment() -> "Rank":
        return Rank(
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        )


def launched() -> bool:
    """True in a process that a launcher has started as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def check_ranks(ranks: int, model_parallel: int) -> None:
    """Raises UserError where the ranks that a launcher starts cannot hold whole replicas of the model."""
    if ranks < 1 or ranks % model_parallel:
        raise UserError(
            f"parallel: tensor x pipeline x context is {model_parallel}, which does not divide the "
            f"{ranks} ranks started; start a multiple of it"
        )
