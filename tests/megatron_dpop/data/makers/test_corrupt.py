"""One intermediate result is wrong, the rest is as it was."""

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_dpop.data.makers.corrupt import Corruption, corrupt, final_answer, wrong_number
from megatron_dpop.data.makers.gsm_symbolic import problems

# The example published with the paper's MetaMath pairs (dataset card of MetaMath_DPO_FewShot).
PUBLISHED = (
    "Each player requires a $25 jersey, a $15.20 pair of shorts, and a pair of socks priced at $6.80. So the total "
    "cost for each player is $25 + $15.20 + $6.80 = 47. Since there are sixteen players on the football team, the "
    "total cost for all of them is 16 * $47 = $752. #### 752 The answer is: 752"
)


def test_published_example_is_reproduced() -> None:
    found = {str(outcome.text) for seed in range(200) if isinstance(outcome := seeded(PUBLISHED, seed), Corruption)}
    assert PUBLISHED.replace("= 47.", "= 52.") in found
    for text in found:
        head, tail = PUBLISHED.split("47.", 1)
        assert text.startswith(head)
        assert text.endswith(tail), "only the intermediate 47 changes; 752 stays, also where it is calculated"


def seeded(text: str, seed: int) -> Corruption | str:
    return corrupt(text, random.Random(seed))


@pytest.mark.parametrize("number", ["47", "1,250", "999", "0.8", "15.20", "15.00", "3", "1", "1,000.50", ".5", "0"])
def test_form_is_kept(number: str) -> None:
    for seed in range(200):
        wrong = wrong_number(number, None, random.Random(seed))
        assert wrong != number
        assert len(wrong.partition(".")[2]) == len(number.partition(".")[2])
        assert Fraction(wrong.replace(",", "")) > 0
        if "," in number and len(wrong.partition(".")[0]) > 3:
            assert "," in wrong
        if number == "15.00":
            assert wrong.endswith(".00")


@pytest.mark.parametrize(
    "number", ["10", "20", "100", "500", "1,200", "20.00", "15.20", "25", "2,500", "5", "150", "1", "0.50"]
)
def test_wrong_number_is_as_round_as_the_right_one(number: str) -> None:
    def digits(text: str) -> str:
        return text.replace(",", "").replace(".", "").lstrip("0")

    def zeros(text: str) -> int:
        return len(digits(text)) - len(digits(text).rstrip("0"))

    for seed in range(200):
        wrong = wrong_number(number, None, random.Random(seed))
        assert zeros(wrong) == zeros(number)
        if len(digits(number).rstrip("0")) > 1:
            assert digits(wrong).rstrip("0").endswith("5") == digits(number).rstrip("0").endswith("5")


def test_wrong_number_is_never_the_answer() -> None:
    assert "48" not in {wrong_number("47", Fraction(48), random.Random(seed)) for seed in range(500)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2 + 2 = 4 and 4 * 2 = 8", "no final answer"),
        ("There are four.\n#### 4", "no calculation"),
        ("So 2 + 2 = 4.\n#### 4", "only the final answer is calculated"),
        ("So 2 + 2 = 4 and 6 - 2 = 4.\nThe answer is: 4.0", "only the final answer is calculated"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    assert seeded(text, 0) == reason


@pytest.mark.parametrize(
    ("text", "changed", "tier"),
    [
        ("There are 12 inches in a foot, so the snake is 24.\n#### 24", "12", "number in words"),
        ("She hiked 24 miles in 6 hours, 4 an hour.\n#### 4", "24", "number in words, which the question gives"),
        ("Then x = 30 and she takes 50.\n#### 80", "30", "stated value"),
        ("As 5 + 1 = 6, she has 50.\n#### 50", "6", "verified calculation"),
    ],
)
def test_without_an_equation_another_number_of_the_working_is_wrong(text: str, changed: str, tier: str) -> None:
    question = "She hikes 24 miles in 6 hours, how many in one?"
    for seed in range(20):
        outcome = corrupt(text, random.Random(seed), question=question)
        assert isinstance(outcome, Corruption)
        assert (outcome.tier, outcome.before) in {(tier, changed), (tier, "6")}
        assert outcome.after != outcome.before
        assert final_answer(outcome.text) == final_answer(text)


@pytest.mark.parametrize("working", ["", "Half a pizza is 3/6 of it", "at 9:30", "x^2", "in 1994-95", "H2O", "200g"])
def test_what_is_part_of_a_word_stays(working: str) -> None:
    assert corrupt(f"{working} and so on.\n#### 4", random.Random(0), question="") == "no calculation"


def test_wrong_numbers_are_as_round_as_right_ones_in_the_whole() -> None:
    """Of 3,000 problems: as many end in one, two or three zeros, and as many in a 5, as of the right numbers."""
    endings: dict[str, Counter[str]] = {"before": Counter(), "after": Counter()}
    for _, (_, answer) in zip(range(3000), problems(seed=3), strict=False):
        outcome = corrupt(answer, random.Random(answer))
        if isinstance(outcome, Corruption):
            for name, counts in endings.items():
                digits = getattr(outcome, name).replace(",", "").replace(".", "")
                zeros = len(digits) - len(digits.rstrip("0"))
                counts[
                    f"{zeros} zeros" + (", a 5" if len(digits) > zeros + 1 and digits[-zeros - 1] == "5" else "")
                ] += 1
    assert sum(endings["before"].values()) > 2500
    assert endings["after"].keys() == endings["before"].keys()
    for ending, count in endings["before"].items():
        assert abs(endings["after"][ending] - count) <= 0.02 * 3000, ending


def test_answer_that_is_no_plain_number_keeps_the_last_result() -> None:
    text = "First 1 + 1 = 2. Then 2 * 5 = 10.\nThe answer is: \\boxed{ten}"
    outcomes = [seeded(text, seed) for seed in range(50)]
    assert all(isinstance(outcome, Corruption) and outcome.before == "2" for outcome in outcomes)


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from("+*")), min_size=2, max_size=6),
    st.integers(0, 2**32),
)
def test_any_worked_answer(steps: list[tuple[int, int, str]], seed: int) -> None:
    results = [a + b if op == "+" else a * b for a, b, op in steps]
    lines = [f"Step: ${a:,} {op} {b:,} = ${r:,} now." for (a, b, op), r in zip(steps, results, strict=True)]
    text = "\n".join([*lines, f"#### {results[-1]}"])
    outcome = seeded(text, seed)
    if isinstance(outcome, str):
        assert set(results) == {results[-1]}
        return
    assert outcome.tier == "verified calculation"
    assert final_answer(outcome.text) == final_answer(text) == results[-1]
    changed = [i for i, (a, b) in enumerate(zip(text.split("\n"), outcome.text.split("\n"), strict=True)) if a != b]
    assert len(changed) == 1
    assert results[changed[0]] != results[-1]
    assert text[outcome.start : outcome.start + len(outcome.before)] == outcome.before
    assert outcome.text == text[: outcome.start] + outcome.after + text[outcome.start + len(outcome.before) :]
