"""The arena's trials: every pair loss, on pairs of low and of high edit distance, three orders of them."""

from itertools import product

from examples.arithmetic.trials import Trial
from megatron_dpop.config.losses import PAIR_LOSSES

SEEDS = (0, 1, 2)
EDITS = ("low", "high")
PROBLEMS = 100  # of the held-out ones


def entry(loss: str, edit: str, seed: int) -> Trial:
    """The loss with the config's defaults, which are its paper's or TRL's."""
    return Trial(loss, (("beta", PAIR_LOSSES[loss]().beta),), edit, seed, problems=PROBLEMS)


def trials(losses: list[str]) -> list[Trial]:
    """All losses at one seed before the next seed."""
    return [entry(loss, edit, seed) for seed, edit, loss in product(SEEDS, EDITS, losses)]
