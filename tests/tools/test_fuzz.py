"""The fuzzer: inputs are those of their seed, good answers pass, and bad ones are told."""

from pathlib import Path
from random import Random

import pytest
from fuzzing.judge import _verdict
from fuzzing.kinds import Configs, RunFolders


def test_an_input_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    kind = RunFolders(tmp_path / "good")
    contents = []
    for work in ("one", "two"):
        (tmp_path / work).mkdir()
        kind.attempt(Random("7/runs/3"), tmp_path / work)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / work / "run").iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("code", "errors", "seconds", "left", "wrong"),
    [
        (0, "", 1, ["out.html"], ""),
        (2, "megatron-dpop: error: x", 1, [], ""),
        (1, "megatron-dpop: failed: x", 1, [], "exit code 1"),
        (2, "Traceback (most recent call last)\n", 1, [], "a traceback"),
        (2, "", 1, [], "0 lines of error"),
        (0, "", 11, [], "11 seconds"),
        (2, "megatron-dpop: error: x", 1, ["out/.a.tmp"], "left behind: ['out/.a.tmp']"),
    ],
)
def test_what_is_wrong_is_told(code: int, errors: str, seconds: float, left: list[str], wrong: str) -> None:
    assert _verdict(code, errors, seconds, left) == wrong


@pytest.mark.slow
def test_some_inputs_are_answered_well(capsys: pytest.CaptureFixture[str]) -> None:
    import fuzz

    assert fuzz.main(["--count", "10", "--seed", "3"]) == 0
    assert "50 inputs, 0 findings (seed 3)" in capsys.readouterr().out
    assert Configs.name == "config"
