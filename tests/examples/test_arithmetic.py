"""The task of the accuracy experiment and the arena: its problems, pairs and scores, and what a trial's training is."""

import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest

from examples.arithmetic.problems import Problem, draw_problems, high_edit_pair, low_edit_pair
from examples.arithmetic.results import Results, estimate, over_seeds, paired_over_problems
from tests.distributed import run_ranks
from tests.tiny import write_config, write_model, write_pairs


def test_solution_and_score() -> None:
    problem = Problem((7, 25, -4))
    assert problem.question == "7+25-4\n"
    assert problem.solution() == "7+25=32\n32-4=28\n#### 28"
    assert problem.is_solved_by("7+25=31\n31-4=27\n#### 28")  # the final answer alone is looked at
    for text in ("7+25=32\n32-4=28\n#### 29", "28", "#### 280", ""):
        assert not problem.is_solved_by(text)


def test_every_solution_is_right_and_no_problem_comes_twice() -> None:
    problems = list(islice(draw_problems(0), 3000))
    assert len(set(problems)) == len(problems)
    for problem in problems:
        lines = problem.solution().splitlines()
        for line in lines[:-1]:
            left, right = line.split("=")
            assert eval(left) == int(right) > 0
        assert int(lines[-1].removeprefix("#### ")) == eval(problem.question) == sum(problem.terms)
        assert problem.is_solved_by(problem.solution())


def test_low_edit_pairs_differ_in_one_number_before_the_final_answer() -> None:
    problems = list(islice(draw_problems(1), 1000))
    pairs = [(problem, low_edit_pair(problem, random.Random(at))) for at, problem in enumerate(problems)]
    made = [(problem, pair) for problem, pair in pairs if pair is not None]
    assert len(made) >= 0.98 * len(problems)
    for problem, pair in made:
        right, wrong = (re.findall(r"\d+|[^\d]", text) for text in (pair.chosen, pair.rejected))
        (at,) = [place for place, (one, other) in enumerate(zip(right, wrong, strict=True)) if one != other]
        assert right[at - 1] == "="  # an intermediate result, and not where the next line takes it up
        assert "#" in right[at + 1 :]
        assert problem.is_solved_by(pair.rejected)


def test_high_edit_pairs_are_wrong_from_the_first_result_on_and_worded_otherwise() -> None:
    for at, problem in enumerate(islice(draw_problems(2), 1000)):
        pair = high_edit_pair(problem, random.Random(at))
        stated = [int(number) for number in re.findall(r"gives (\d+)", pair.rejected)]
        assert len(stated) == len(problem.results())
        assert len({said - right for said, right in zip(stated, problem.results(), strict=True)} - {0}) == 1
        assert not problem.is_solved_by(pair.rejected)
        assert problem.is_solved_by(pair.chosen)


def line(seed: int, solved: str) -> dict:
    accuracy = solved.count("1") / len(solved)
    known = {"name": f"one-seed{seed}", "kind": "one", "seed": seed, "problems": len(solved)}
    return {**known, "solved": solved, "accuracy": accuracy}


def test_differences_are_paired_by_seed_and_problem() -> None:
    ours, theirs = [line(0, "1101"), line(1, "1111")], [line(1, "1010"), line(0, "1100"), line(2, "0000")]
    found = paired_over_problems(ours, theirs)
    assert (found.mean, found.count) == (pytest.approx(3 / 8), 4)
    assert found.half == pytest.approx(
        1.96 * (((0.0 - 0.375) ** 2 * 2 + (0.5 - 0.375) ** 2 + (1 - 0.375) ** 2) / 12) ** 0.5
    )
    seeds = over_seeds(ours, theirs, "accuracy")
    assert (seeds.mean, seeds.count) == (pytest.approx(3 / 8), 2)
    assert seeds.half == pytest.approx(12.706 * 0.125)  # of 0.25 and 0.5
    assert estimate([0.5]).text() == "0.50"
    assert estimate([1.0, 2.0, 3.0]).text(1, signed=True) == "+2.0 ± 2.5"


def test_results_are_kept_once_and_in_the_order_asked_for(tmp_path: Path) -> None:
    results = Results(tmp_path / "new" / "results.jsonl")
    assert results.lines() == []
    for entry in (line(1, "10"), line(0, "11"), line(1, "00")):
        results.add(entry)
    assert [found["solved"] for found in results.of_kind("one")] == ["11", "10"]
    results.add(line(1, "000"))  # of more problems: it takes the shorter one's place
    assert [found["solved"] for found in results.of_kind("one")] == ["11", "000"]
    assert not results.lacks("one-seed1", 3)
    assert results.lacks("one-seed1", 4)
    assert results.lacks("one-seed2", 1)
    results.keep(["one-seed1", "absent", "one-seed0"], tmp_path / "kept.jsonl")
    assert [found["seed"] for found in Results(tmp_path / "kept.jsonl").lines()] == [1, 0]


def test_pairs_that_differ_from_the_start_on_have_no_tokens_before_the_edit() -> None:
    import numpy as np

    from examples.arithmetic.measure import token_summary
    from megatron_dpop.analysis.spans import PairLogps

    def logps(chosen: list[float], rejected: list[float]) -> PairLogps:
        return PairLogps(np.array(chosen, np.float32), np.array(rejected, np.float32))

    ours, base = [logps([-1.0, -2.0, -4.0], [-8.0])], [logps([-2.0, -1.0, -1.0], [-5.0])]
    found = token_summary(ours, base, [0])
    assert (found["before_edit"], found["first_edit"], found["after_edit"]) == (None, 1.0, -2.0)
    assert (found["chosen_minus_reference"], found["rejected_minus_reference"], found["margin"]) == (-3.0, -3.0, 0.0)
    assert (found["pair_accuracy"], found["fell_after_edit"]) == (0.0, 1.0)
    assert token_summary(ours, base, [1])["before_edit"] == 1.0


def test_the_reference_says_the_same_of_held_out_tokens_once_it_is_kept(tmp_path: Path) -> None:
    import numpy as np

    from examples.arithmetic.training import reference_tokens
    from megatron_dpop.analysis.spans import PairLogps

    draw = np.random.default_rng(0)
    computed = [PairLogps(*(draw.normal(size=size).astype(np.float32) for size in sizes)) for sizes in ((3, 2), (1, 5))]
    first = reference_tokens(tmp_path / "kept.json", lambda: computed)
    second = reference_tokens(tmp_path / "kept.json", lambda: pytest.fail("computed again"))
    for found in (first, second):
        for one, other in zip(found, computed, strict=True):
            np.testing.assert_array_equal(one.chosen, other.chosen, strict=True)
            np.testing.assert_array_equal(one.rejected, other.rejected, strict=True)


def trial_of(tree: dict, hf: str) -> tuple[list[dict], float, list[float]]:
    """A trial's training in this rank: its metrics, and how far the weights given to transformers are from `hf`'s."""
    import torch
    from transformers import LlamaForCausalLM

    from examples.arithmetic.measure import give_weights, token_summary
    from examples.arithmetic.training import held_out_tokens, train_here

    base: list = []

    def before(run: object) -> object:
        base.extend(held_out_tokens(run, Path(tree["data"]["train"]))[0])
        return lambda: False

    run, steps = train_here(tree, before)
    assert steps == tree["train"]["steps"]
    exported = LlamaForCausalLM.from_pretrained(hf, dtype=torch.float32)
    given = LlamaForCausalLM(exported.config)
    give_weights(run.engine, given)
    apart = max(
        float((one - other).abs().max())
        for one, other in zip(exported.state_dict().values(), given.state_dict().values(), strict=True)
    )
    tokens, common = held_out_tokens(run, Path(tree["data"]["train"]))
    summary = token_summary(tokens, base, common)
    lines = [json.loads(text) for text in (Path(tree["run"]["dir"]) / "metrics.jsonl").read_text().splitlines()]
    return lines, apart, [summary["chosen_minus_reference"], summary["rejected_minus_reference"], summary["margin"]]


@pytest.mark.slow
def test_a_trial_trains_as_the_command_does(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    tree = write_config(tmp_path, tmp_path / "model", data={"validation": str(tmp_path / "pairs.jsonl")})
    (outcome,) = run_ranks(exported_metrics, 1, {**tree, "checkpoint": {}})
    other = {**tree, "run": {"dir": str(tmp_path / "trial")}}
    ((lines, apart, moved),) = run_ranks(trial_of, 1, other, str(tmp_path / "run" / "hf"))
    assert apart == 0
    assert [comparable(line) for line in lines] == [comparable(line) for line in outcome]
    last = lines[-1]
    assert moved[0] == pytest.approx(last["validation/logps/chosen_minus_reference"], abs=1e-4)
    assert moved[2] == pytest.approx(last["validation/rewards/margins"] / tree["loss"]["beta"], abs=1e-4)
    assert moved[0] - moved[1] == pytest.approx(moved[2], abs=1e-6)


def exported_metrics(tree: dict) -> list[dict]:
    from tests.training import run_here

    (outcome,) = run_here(tree)
    assert outcome.error is None
    return outcome.metrics


def comparable(line: dict) -> dict:
    return {name: value for name, value in line.items() if not name.startswith("perf/")}
