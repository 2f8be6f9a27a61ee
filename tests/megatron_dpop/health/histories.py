"""Made-up histories of healthy runs, to which each test adds one fault."""

import math
import random
from collections.abc import Callable

Lines = dict[int, dict[str, float]]
Change = Callable[[int], dict[str, float]]  # from a step to metrics that differ there


def healthy(steps: int = 120, *, loss: str = "dpop", validate_every: int = 20, seed: int = 0) -> Lines:
    """A run that learns, with the noise of small batches; DPOP's penalty is active on some pairs of most steps."""
    draw = random.Random(seed)
    lines: Lines = {}
    for step in range(steps + 1):
        done = min(1.0, step / 40)
        line: dict[str, float] = {}
        if step < steps:
            line |= results(done, noise=draw.gauss(0, 1.0) if step else 0.0)
            line |= {"grad_norm": 20 * math.exp(draw.gauss(0, 0.8)), "learning_rate": 5e-5}
            seconds = draw.uniform(1.8, 2.2) + (6 if step == 0 else 0)
            line |= {"perf/pairs_per_second": 8 / seconds, "perf/tokens_per_second": 1800 / seconds}
            if loss == "dpop":
                active = draw.choice([0.0, 0.125, 0.25, 0.5]) if step else 0.0
                line |= {"dpop/penalty": 0.3 * active, "dpop/active_fraction": active}
                line["grad_norm"] *= 150 if active else 1
            if step == 0:
                line["reference/drift"] = 0.0
        if step in (0, steps) or step % validate_every == 0:
            line |= {f"validation/{name}": value for name, value in results(done).items()}
        lines[step] = line
    return lines


def results(done: float, *, noise: float = 0.0) -> dict[str, float]:
    chosen = 3 * done + noise
    margin = 4 * done
    return {
        "loss": math.log1p(math.exp(-margin)),
        "rewards/chosen": 0.3 * chosen,
        "rewards/rejected": 0.3 * chosen - margin,
        "rewards/margins": margin,
        "rewards/accuracies": min(1.0, 0.5 + 0.45 * done) if done else 0.0,
        "logps/chosen_minus_reference": chosen,
    }


def changed(lines: Lines, change: Change) -> Lines:
    """Replaces the metrics that a line has; those that it has not stay absent."""
    return {
        step: {**line, **{name: value for name, value in change(step).items() if name in line}}
        for step, line in lines.items()
    }
