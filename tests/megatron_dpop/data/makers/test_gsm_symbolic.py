"""Generated problems: yield, and what the files hold."""

import json
import random
from itertools import islice
from pathlib import Path

import pyarrow.parquet
import pytest

from dpop_base.errors import UserError
from megatron_dpop.data.makers.corrupt import Corruption, corrupt, final_answer
from megatron_dpop.data.makers.gsm_symbolic import make_gsm_symbolic, problems


@pytest.mark.slow
def test_ten_thousand_problems_yield_pairs() -> None:
    made = large = 0
    for index, (_, answer) in enumerate(islice(problems(7), 10_000)):
        outcome = corrupt(answer, random.Random(index))
        if isinstance(outcome, Corruption):
            made += 1
            assert outcome.text != answer
            assert final_answer(outcome.text) == final_answer(answer)
            assert outcome.text.split("####")[1] == answer.split("####")[1]
            assert outcome.before != outcome.after
            large += len(outcome.before) > 2
            if outcome.before != "0":
                assert outcome.before.endswith("0") == outcome.after.endswith("0"), "roundness tells nothing"
    assert large > 1000
    assert made >= 9_500


def test_files_are_disjoint_and_a_function_of_the_seed(tmp_path: Path) -> None:
    sheet = make_gsm_symbolic(tmp_path / "a", train=300, validation=50, seed=3, progress=False)
    make_gsm_symbolic(tmp_path / "b", train=300, validation=50, seed=3, progress=False)
    make_gsm_symbolic(tmp_path / "c", train=100, validation=50, seed=3, progress=False)
    make_gsm_symbolic(tmp_path / "d", train=300, validation=50, seed=4, progress=False)
    read = {
        name: [pyarrow.parquet.read_table(tmp_path / name / f"{split}.parquet") for split in ("train", "validation")]
        for name in "abcd"
    }
    train, validation = (table.to_pylist() for table in read["a"])
    assert (len(train), len(validation)) == (300, 50)
    prompts = [row["prompt"] for row in train + validation]
    assert len(set(prompts)) == 350
    assert all(row["chosen"] != row["rejected"] for row in train)
    assert read["a"] == read["b"]
    assert read["a"][1] == read["c"][1], "the validation pairs do not depend on how many are trained on"
    assert read["a"][0] != read["d"][0]
    assert sheet == json.loads((tmp_path / "a" / "datasheet.json").read_text())
    assert sheet["pairs"] == {"train": 300, "validation": 50}
    assert 0 < sheet["normalised_edit_distance"]["train"]["mean"] < 0.1


def test_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        make_gsm_symbolic(tmp_path, train=0, progress=False)
