"""The paper's rule for MetaMath: one intermediate result is made wrong, the final answer stays."""

import random
import re
from dataclasses import dataclass
from fractions import Fraction

from .arithmetic import NUMBER, Calculation, decimals_of, find_calculations

_ANSWER_MARK = re.compile(r"####|The answer is:?|\\boxed")
_ANSWER = re.compile(rf"(?:####|The answer is:?)\s*(?:\\?[$€£¥])?\s*(?P<number>-?(?:{NUMBER}))(?P<percent>\\?%)?")


# A number in words: no part of a name, a date, an exponent, a time or a decimal.
_IN_WORDS = re.compile(rf"(?<![\w.,:/^_\\-])(?P<number>{NUMBER})(?![\w:/^]|[.,]\d|-\w)")

VERSION = "3"  # of the rule: the same version, seed and text give the same corruption

# Where a result was found, best first: a checked sum, an expression that could not be checked, a stated value; where
# there is no equation, a number of the working's own, and last one that the question gives.
TIERS = (
    "verified calculation",
    "unverified calculation",
    "stated value",
    "number in words",
    "number in words, which the question gives",
)


@dataclass(frozen=True)
class Corruption:
    text: str
    start: int  # where the changed digits begin, in both texts
    before: str
    after: str
    tier: str  # one of TIERS


def corrupt(text: str, generator: random.Random, *, question: str | None = None) -> Corruption | str:
    """The text with one intermediate result replaced by a wrong one, or why there is none to replace.

    Eligible are calculations before the final answer's mark whose value is not the final answer's; the best tier
    that has any is drawn from. Given the text's `question`, also what is no calculation: `x = 5`, and in a text
    without any such a number in its words, one that the question does not give before one that it does. Decimals,
    thousands separators and whatever stands around the digits are kept, and the new value is neither the old one nor
    the final answer.
    """
    mark = _ANSWER_MARK.search(text)
    if mark is None:
        return "no final answer"
    working, answer = text[: mark.start()], final_answer(text)
    found = find_calculations(working, stated_values=question is not None)
    eligible = _intermediate([_Number(c.start, c.end, c.value, _tier(c)) for c in found], answer)
    if not eligible and question is not None:
        eligible = _intermediate(_numbers_in_words(working, question), answer)
    if not eligible:
        return "only the final answer is calculated" if found else "no calculation"
    tier = min(number.tier for number in eligible)
    chosen = generator.choice([number for number in eligible if number.tier == tier])
    before = text[chosen.start : chosen.end]
    after = wrong_number(before, answer, generator)
    return Corruption(text[: chosen.start] + after + text[chosen.end :], chosen.start, before, after, TIERS[tier])


@dataclass(frozen=True)
class _Number:
    """Where a number's digits stand, its value, and how good a place it is to be wrong: an index of TIERS."""

    start: int
    end: int
    value: Fraction
    tier: int


def _intermediate(numbers: list[_Number], answer: Fraction | None) -> list[_Number]:
    """Leaves out the final answer's value, and where that is no plain number the last one, which may be it."""
    kept = [number for number in numbers if number.value != answer]
    return kept[:-1] if answer is None and kept and kept[-1] is numbers[-1] else kept


def _tier(calculation: Calculation) -> int:
    return 0 if calculation.verified else 1 if calculation.has_operator else 2


def _numbers_in_words(working: str, question: str) -> list[_Number]:
    given = {match["number"].replace(",", "") for match in _IN_WORDS.finditer(question)}
    numbers = []
    for match in _IN_WORDS.finditer(working):
        digits = match["number"].replace(",", "")
        if Fraction(digits) > 0:
            numbers.append(_Number(*match.span("number"), Fraction(digits), 4 if digits in given else 3))
    return numbers


def final_answer(text: str) -> Fraction | None:
    """The number after `####` or `The answer is`; None where it is not a plain number."""
    answers = list(_ANSWER.finditer(text))
    return Fraction(answers[-1]["number"].replace(",", "")) if answers else None


def wrong_number(number: str, answer: Fraction | None, generator: random.Random) -> str:
    """Another number in the same form and as round, so that neither tells which one was made up.

    It ends in as many zeros (1,200 becomes 1,400, and 15.00 becomes 17.00), and in a 5 before them where the right
    one does. It is at most a fifth away, or where that is more nine units of the last digit (three of the last that
    is no zero, ten of one that is a 5).
    """
    decimals = decimals_of(number)
    units = int(number.replace(",", "").replace(".", ""))
    step = 10 ** trailing_zeros(units)
    right = units // step
    has_five = right % 10 == 5 and right > 5
    reach = max(10 if has_five else 3 if step > 1 else 9, right // 5)
    while True:
        wrong = right + generator.choice((-1, 1)) * generator.randint(1, reach)
        as_round = wrong % 10 != 0 and (right < 10 or (wrong % 10 == 5) == has_five)
        if wrong > 0 and as_round and Fraction(wrong * step, 10**decimals) != answer:
            return _in_form(wrong * step, number, decimals)


def trailing_zeros(units: int) -> int:
    return len(str(units)) - len(str(units).rstrip("0")) if units else 0


def _in_form(units: int, like: str, decimals: int) -> str:
    whole, fraction = divmod(units, 10**decimals)
    text = f"{whole:,}" if "," in like else str(whole)
    if like.startswith("."):
        text = text if whole else ""
    return f"{text}.{fraction:0{decimals}d}" if decimals else text
