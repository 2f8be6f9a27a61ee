"""Whether the look of the numbers tells which answer of a low-edit pair is wrong."""

import random
import re
from pathlib import Path

from examples.arithmetic.problems import low_edit_pair
from examples.arithmetic.stage import Stage
from megatron_dpop.data.makers.corrupt import trailing_zeros


def corruption() -> str:
    """What the numbers of low-edit pairs look like, right and wrong."""
    problems = Stage(Path()).problems["pairs"]
    made = [low_edit_pair(problem, random.Random(f"train {at}")) for at, problem in enumerate(problems)]
    changed = [changed_number(pair.chosen, pair.rejected) for pair in made if pair is not None]
    shares = {
        "zeros": sum(trailing_zeros(right) == trailing_zeros(wrong) for right, wrong in changed),
        "digits": sum(len(str(right)) == len(str(wrong)) for right, wrong in changed),
        "larger": sum(wrong > right for right, wrong in changed),
    }
    zeros, digits, larger = (f"{count / len(changed):.0%}" for count in shares.values())
    return (
        f"Of the {len(changed)} wrong numbers {zeros} end in as many zeros as the right one, {digits} have as many "
        f"digits, {larger} are larger: their look does not tell which is wrong. That each pair differs in one number "
        "of the working, and never in the final answer, is its form, and all that is shown here is shown of it."
    )


def changed_number(chosen: str, rejected: str) -> tuple[int, int]:
    both = zip(re.findall(r"\d+", chosen), re.findall(r"\d+", rejected), strict=True)
    ((right, wrong),) = [(int(one), int(other)) for one, other in both if one != other]
    return right, wrong
