"""The experiments of the paper's section 5 and its ablations: a loss on a kind of pairs, with a seed."""

from dataclasses import dataclass

BETA, LAMBDA = 0.3, 50.0  # the paper's


@dataclass(frozen=True)
class Experiment:
    pairs: str  # "low-edit" or "high-edit"
    loss: str
    beta: float = BETA
    penalty: float | None = None  # DPOP's lambda
    seed: int = 0  # of the order of the training pairs
    schedule: str | None = None  # of the learning rate; None: the config's

    @property
    def name(self) -> str:
        penalty = "" if self.penalty is None else f"-lambda{self.penalty:g}"
        schedule = "" if self.schedule is None else f"-{self.schedule}"
        return f"{self.pairs}-{self.loss}-beta{self.beta:g}{penalty}{schedule}-seed{self.seed}"

    def overrides(self) -> list[str]:
        words = [f"--loss.name={self.loss}", f"--loss.beta={self.beta}", f"--train.seed={self.seed}"]
        if self.schedule is not None:
            words.append(f"--optimizer.schedule={self.schedule}")
        return words if self.penalty is None else [*words, f"--loss.lambda={self.penalty}"]


def dpo(pairs: str = "low-edit", beta: float = BETA, seed: int = 0, schedule: str | None = None) -> Experiment:
    return Experiment(pairs, "dpo", beta, seed=seed, schedule=schedule)


def dpop(pairs: str = "low-edit", penalty: float = LAMBDA, seed: int = 0, schedule: str | None = None) -> Experiment:
    return Experiment(pairs, "dpop", penalty=penalty, seed=seed, schedule=schedule)


def ipo(pairs: str = "low-edit") -> Experiment:
    return Experiment(pairs, "ipo")


# By the name that the command takes. DPOP with lambda 0 is DPO, term by term: that run stands for both.
GROUPS: dict[str, list[Experiment]] = {
    "low-edit": [dpo(), dpop(), ipo()],
    "seeds": [loss(seed=seed) for seed in range(6) for loss in (dpo, dpop)],
    # How much hangs on the schedule: at a constant rate the last steps still move an answer by several nats each.
    "constant": [loss(seed=seed, schedule="constant") for seed in range(3) for loss in (dpo, dpop)],
    "high-edit": [dpo("high-edit"), dpop("high-edit"), ipo("high-edit")],
    "beta": [dpo(beta=beta) for beta in (0.1, 0.3, 1.0)],
    "lambda": [dpo(), *(dpop(penalty=penalty) for penalty in (0.5, 5.0, 50.0))],
}
