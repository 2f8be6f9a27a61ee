"""The problems of the task `gsm_symbolic`, drawn as `data make gsm-symbolic` draws its pairs, and their scoring."""

import functools
import re
from fractions import Fraction

from megatron_dpop.data.makers.arithmetic import NUMBER
from megatron_dpop.data.makers.corrupt import final_answer
from megatron_dpop.data.makers.gsm_symbolic import problems

# Problems come from a seed that no maker takes by default. Two seeds share about three problems in a hundred, so
# what the makers' default seed draws first is passed over too.
PROBLEMS = 500
SEED = 2402_13228
TRAINING_SEED = 0
TRAINING_PROBLEMS = 4096

_MARKED = re.compile(rf"####\s*\\?[$€£¥]?\s*(?P<number>-?(?:{NUMBER}))")
_NUMBER = re.compile(rf"(?P<number>(?<![\d\w])-?(?:{NUMBER}))")


@functools.cache
def held_out_problems() -> tuple[tuple[str, Fraction], ...]:
    """(question, final answer) of `PROBLEMS` problems: the same ones on every machine, no question twice."""
    seen = {question for question, _ in _first(TRAINING_SEED, TRAINING_PROBLEMS)}
    found: list[tuple[str, Fraction]] = []
    for question, worked in problems(SEED):
        answer = final_answer(worked)
        if question not in seen and answer is not None:
            seen.add(question)
            found.append((question, answer))
            if len(found) == PROBLEMS:
                break
    return tuple(found)


def _first(seed: int, count: int) -> list[tuple[str, str]]:
    return [problem for _, problem in zip(range(count), problems(seed), strict=False)]


def stated_answer(text: str) -> tuple[Fraction | None, bool]:
    """The number that an answer ends with, and whether it is marked.

    The number after the first `####`, which ends an answer in the training pairs' form; without one the last number
    of the text.
    """
    if marked := _MARKED.search(text):
        return _value(marked["number"]), True
    numbers = [match["number"] for match in _NUMBER.finditer(text)]
    return (_value(numbers[-1]) if numbers else None), False


def score(text: str, answer: Fraction) -> dict[str, float]:
    """`exact_match`: the final number is right; `marked`: the answer ends in the form of the training pairs."""
    stated, marked = stated_answer(text)
    return {"exact_match": float(stated == answer), "marked": float(marked)}


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
