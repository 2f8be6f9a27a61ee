"""The offline task's problems are held out, and an answer is judged by its final number."""

from fractions import Fraction
from itertools import islice

import pytest

from megatron_dpop.data.makers.corrupt import final_answer
from megatron_dpop.data.makers.gsm_symbolic import make_gsm_symbolic, problems
from megatron_dpop.evaluation.problems import PROBLEMS, SEED, held_out_problems, score, stated_answer


@pytest.mark.parametrize(
    ("text", "number", "marked"),
    [
        ("3 * 4 = 12\n#### 12", 12, True),
        ("#### 12\nAlso 13.", 12, True),
        ("#### $1,250.50", Fraction("1250.5"), True),
        ("#### -7", -7, True),
        ("so there are 12 pens and 30 pencils.", 30, False),
        ("The total is $1,234.", 1234, False),
        ("It is 0.5.", Fraction(1, 2), False),
        ("from 10-20", 20, False),
        ("#### none, it is 5", 5, False),
        ("I do not know", None, False),
    ],
)
def test_final_number_of_an_answer(text: str, number: Fraction | None, marked: bool) -> None:
    assert stated_answer(text) == (number, marked)


def test_worked_answers_are_right_and_wrong_ones_are_not() -> None:
    for _, worked in islice(problems(3), 200):
        answer = final_answer(worked)
        assert answer is not None
        assert score(worked, answer) == {"exact_match": 1.0, "marked": 1.0}
        assert score(worked, answer + 1) == {"exact_match": 0.0, "marked": 1.0}


def test_problems_are_unlike_each_other_and_those_that_the_makers_draw_first(tmp_path) -> None:
    held_out = [question for question, _ in held_out_problems()]
    assert len(set(held_out)) == len(held_out) == PROBLEMS
    assert not set(held_out) & {question for question, _ in islice(problems(0), 4000)}
    import pyarrow.parquet

    make_gsm_symbolic(tmp_path, train=320, validation=64, progress=False)
    for split in ("train", "validation"):
        trained = pyarrow.parquet.read_table(tmp_path / f"{split}.parquet")["prompt"].to_pylist()
        assert not set(held_out) & set(trained)


def test_problems_are_the_generators_own_in_its_order() -> None:
    """So that another machine, or the plain harness, asks the same ones."""
    drawn = [question for question, _ in islice(problems(SEED), 2 * PROBLEMS)]
    places = [drawn.index(question) for question, _ in held_out_problems()]
    assert places == sorted(places)
    assert places[-1] < 1.1 * PROBLEMS
