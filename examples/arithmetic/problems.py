"""Chain sums with worked solutions, and the pairs that are made of them.

A problem is `7+25-4`, its solution a line for each step and a last one, `#### 28`. Low edit distance: the solution
against the same with one intermediate result corrupted, by the rule that `megatron-dpop data make metamath` has. High:
against an account in other words that goes wrong at its first step and goes on from there.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from megatron_dpop.data.makers.corrupt import corrupt, final_answer, wrong_number
from megatron_dpop.data.makers.pairs_file import Pair

LARGEST_TERM = 50
STEPS = (2, 3)  # how many a problem can have: three or four terms


@dataclass(frozen=True)
class Problem:
    terms: tuple[int, ...]  # those that are taken away are negative; the first never is

    @property
    def question(self) -> str:
        return "".join(f"{term:+d}" for term in self.terms).removeprefix("+") + "\n"

    def results(self) -> list[int]:
        """After each step; the last is the answer."""
        return [sum(self.terms[: count + 1]) for count in range(1, len(self.terms))]

    def solution(self) -> str:
        reached, lines = self.terms[0], []
        for term, result in zip(self.terms[1:], self.results(), strict=True):
            lines.append(f"{reached}{term:+d}={result}")
            reached = result
        return "\n".join([*lines, f"#### {reached}"])

    def is_solved_by(self, text: str) -> bool:
        """Whether the text's final answer is the right one; how it was reached is not looked at."""
        return final_answer(text) == Fraction(sum(self.terms))


def draw_problems(seed: int, *, steps: Sequence[int] = STEPS) -> Iterator[Problem]:
    """Problems without end, none of them twice; every result is above zero."""
    draw = random.Random(f"problems {seed}")
    seen: set[Problem] = set()
    while True:
        terms = [draw.randint(2, LARGEST_TERM)]
        for _ in range(draw.choice(steps)):
            size = draw.randint(2, LARGEST_TERM)
            takes_away = draw.random() < 0.5 and size < sum(terms)
            terms.append(-size if takes_away else size)
        problem = Problem(tuple(terms))
        if problem not in seen:
            seen.add(problem)
            yield problem


def low_edit_pair(problem: Problem, draw: random.Random) -> Pair | None:
    """None where each intermediate result is the final answer too, so that none can be corrupted alone."""
    solution = problem.solution()
    wrong = corrupt(solution, draw)
    return None if isinstance(wrong, str) else Pair(problem.question, solution, wrong.text)


def high_edit_pair(problem: Problem, draw: random.Random) -> Pair:
    """Every result of the other account, the final one too, is off by what its first one is."""
    results = problem.results()
    off = 0
    while off == 0 or min(results) + off <= 0:
        off = int(wrong_number(str(results[0]), None, draw)) - results[0]
    parts = [f"We start with {problem.terms[0]}."]
    for term, result in zip(problem.terms[1:], results, strict=True):
        verb = "Adding" if term > 0 else "Taking away"
        parts.append(f"{verb} {abs(term)} gives {result + off}.")
    parts.append(f"The answer is {results[-1] + off}")
    return Pair(problem.question, problem.solution(), " ".join(parts))
