"""The paper's figures 2, 4 and 6 as trials of the arithmetic task: what each loss does to the accuracy of the task."""

from itertools import product

from examples.arithmetic.trials import Trial

SEEDS = (0, 1, 2)
BETA, BETAS = 0.3, (0.1, 0.3, 1.0)
LOSSES = ("dpo", "ipo", "dpop")  # DPOP with the paper's lambda, 50
LOWER_RATE = 5.0e-5  # the paper's


def of(loss: str, seed: int, *, beta: float = BETA, edit: str = "low") -> Trial:
    return Trial(loss, (("beta", beta),), edit, seed)


def sft(seed: int) -> Trial:
    """Trains on the right solutions alone, with DPOP's steps and rate."""
    return Trial("sft", seed=seed)


def cpo(seed: int) -> Trial:
    return Trial("cpo", (("beta", 0.1),), seed=seed)


def dpo_and_sft(seed: int) -> Trial:
    """The sum of both losses: Llama 3's and RPO's remedy."""
    return Trial("dpo", (("beta", BETA), ("nll_weight", 1.0)), seed=seed)


def slow_dpo(seed: int) -> Trial:
    return Trial("dpo", (("beta", BETA),), seed=seed, rate=LOWER_RATE)


def early_dpo(seed: int) -> Trial:
    """DPO that ends at the first step at which its held-out margin has come to DPOP's last one."""
    return Trial("dpo", (("beta", BETA),), seed=seed, ends_at_margin_of=of("dpop", seed))


def trials() -> list[Trial]:
    """What matters most first, all seeds of it."""
    wanted = [of(loss, seed) for seed, loss in product(SEEDS, LOSSES)]
    for seed in SEEDS:
        wanted += [dpo_and_sft(seed), sft(seed), cpo(seed), slow_dpo(seed), early_dpo(seed)]
    wanted += [of(loss, seed, edit="high") for seed, loss in product(SEEDS, LOSSES)]
    wanted += [of(loss, seed, beta=beta) for seed, beta, loss in product(SEEDS, BETAS, LOSSES) if beta != BETA]
    return wanted
