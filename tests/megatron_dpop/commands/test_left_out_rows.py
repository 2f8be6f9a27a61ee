"""Rows that are left out or counted, on a user's path: through the command and the token cache, and from it again."""

import json
from pathlib import Path

import pytest
import yaml

from megatron_dpop.commands.main import run
from tests.tiny import write_config, write_model

PAIR = {"prompt": "w1 w2", "chosen": "w3 w4", "rejected": "w3 w5"}
RATED = {"prompt": "w1 w2", "responses": ["w3 w4", "w3 w5"], "scores": [2, 1]}

CASES: dict[str, tuple[list[dict], dict, str]] = {
    "dropped as too long": (
        [PAIR, {**PAIR, "prompt": "w1 " * 90}],
        {"too_long": "drop"},
        "pairs: 1 left out: longer than 64 tokens",
    ),
    "prompt truncated": (
        [PAIR, {**PAIR, "prompt": "w1 " * 90}],
        {"too_long": "truncate_prompt"},
        "pairs: 1 examples: prompt truncated",
    ),
    "tied ratings": (
        [RATED, {**RATED, "scores": [1, 1]}],
        {},
        "pairs: 1 left out: all completions are rated the same",
    ),
    "keys of messages": (
        [{**PAIR, "prompt": [{"role": "user", "content": "w1", "timestamp": 5}]}],
        {},
        "pairs: 1 examples: the chat template has no use for `timestamp`, a key of messages",
    ),
    "plain text": ([PAIR], {"chat_template": "none"}, "pairs: pairs"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), num_hidden_layers=2)


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_counts_rows_and_repeats_itself_from_the_cache(
    tmp_path: Path, model: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, data, said = CASES[case]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(write_config(tmp_path, model, data=data)))
    errors = []
    for _ in range(2):
        assert run(["train", str(tmp_path / "config.yaml"), "--dry-run"]) == 0
        lines = capsys.readouterr().err.splitlines()
        errors.append([line for line in lines if not line.startswith("disk: ")])  # others fill the disk meanwhile
    assert any(line.startswith(said) for line in errors[0]), errors[0]
    assert errors[1] == errors[0]
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 1
