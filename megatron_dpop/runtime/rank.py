"""This process among all, as its launcher tells it by environment variables. No torch here."""

import os
from dataclasses import dataclass

from dpop_base.errors import UserError

# The file without a name in which ranks on one node meet, from our launcher.
STORE_VARIABLE = "MEGATRON_DPOP_STORE_FD"


@dataclass(frozen=True)
class Rank:
    """A process, as torchrun numbers it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None  # None where the launcher does not say

    @staticmethod
    def from_environment() -> "Rank":
        """Raises UserError where the variables are no numbers, or contradict each other."""
        world_size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
        if not rank < world_size:
            raise UserError(
                f"RANK is {rank} and WORLD_SIZE {world_size}, but ranks count from 0 to WORLD_SIZE - 1; "
                "unset both, or start with torchrun"
            )
        found = Rank(rank, world_size, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 0) or None)
        if (found.local_world_size or 1) > world_size:
            raise UserError(f"LOCAL_WORLD_SIZE is {found.local_world_size}, more than WORLD_SIZE {world_size}")
        return found

    @property
    def on_one_node(self) -> bool:
        """True where all ranks are known to be on this machine."""
        return self.world_size in (1, self.local_world_size)


@dataclass(frozen=True)
class Node:
    """This machine among those of the run."""

    number: int
    count: int

    @staticmethod
    def from_environment() -> "Node":
        return Node(_number("GROUP_RANK", 0), _number("GROUP_WORLD_SIZE", 1))


def launched() -> bool:
    """True in a process that a launcher has started as one of its ranks."""
    return bool(os.environ.get("RANK") and os.environ.get("WORLD_SIZE"))


def check_ranks(ranks: int, fewest: int) -> None:
    """Raises UserError where the ranks that a launcher starts cannot hold whole replicas of the model.

    `fewest`: the number that `ParallelConfig.fewest_ranks` wants a multiple of.
    """
    if ranks < 1 or ranks % fewest:
        raise UserError(
            f"parallel: the layout needs {fewest} ranks, which does not divide the {ranks} ranks started; "
            "start a multiple of it"
        )


def _number(name: str, default: int) -> int:
    """An empty variable is as good as none."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r} in the environment, which is no number; unset it, or start with torchrun")
    return int(text)
