"""Rows that cannot be used, and columns that names do not tell, on a user's path: config, command and cache."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_dpop.commands.main import run
from tests.tiny import write_config, write_model

PAIR = {"prompt": "w1 w2", "chosen": "w3 w4", "rejected": "w3 w5"}
USER = {"role": "user", "content": "w1 w2"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "identical": (
        {**PAIR, "rejected": "w3 w4"},
        "`chosen` and `rejected` are identical; a preference needs a difference",
    ),
    "empty": ({**PAIR, "chosen": " "}, "`chosen` is empty; a completion needs text"),
    "null": ({**PAIR, "prompt": None}, "`prompt` is null; a string is needed"),
    "missing": ({"prompt": "w1", "chosen": "w2"}, "missing `rejected`"),
    "diverging": (
        {
            "chosen": [USER, {"role": "assistant", "content": "w3"}],
            "rejected": [{**USER, "content": "w7"}, {"role": "assistant", "content": "w4"}],
        },
        "`chosen` and `rejected` share no prompt",
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), num_hidden_layers=2)


class Command:
    def __init__(self, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.model, self.capsys = folder, model, capsys

    def dry_run(self, rows: list[dict[str, Any]], *, source: dict[str, Any] | None = None, **data: Any) -> tuple:
        """The exit code and the lines of standard error."""
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = write_config(self.folder, self.model, data=data)
        config["data"]["train"] = [{"path": str(self.folder / "pairs.jsonl"), **(source or {})}]
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))
        code = run(["train", str(self.folder / "config.yaml"), "--dry-run"])
        return code, self.capsys.readouterr().err.splitlines()


@pytest.fixture
def command(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Command(tmp_path, model, capsys)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_or_is_dropped_and_counted(command: Command, name: str) -> None:
    row, fault = BAD[name]
    rows = [{**PAIR, "prompt": f"w{i % 50}"} for i in range(200)]
    rows[120] = row
    code, (line,) = command.dry_run(rows)
    assert code == 2
    assert f"pairs.jsonl, line 121: {fault}" in line
    assert "set data.bad_rows: drop" in line
    for _ in range(2):  # the second time from the cache
        code, lines = command.dry_run(rows, bad_rows="drop")
        assert code == 0
        assert any(line.startswith(f"pairs: 1 bad rows left out: {fault}") for line in lines)


def test_too_many_bad_rows_stop_the_run_all_the_same(command: Command) -> None:
    rows = [PAIR] * 95 + [row for row, _ in BAD.values()]
    code, (line,) = command.dry_run(rows, bad_rows="drop")
    assert code == 2
    assert "5 of 100 rows (5.0%) cannot be used, more than data.bad_rows_limit 1.0%" in line
    assert "1 times: `chosen` is empty; a completion needs text (line 97)" in line
    code, lines = command.dry_run(rows, bad_rows="drop", bad_rows_limit=0.05)
    assert code == 0
    assert len([line for line in lines if "bad rows left out" in line]) == 5
    assert command.dry_run([{**PAIR, "chosen": ""}] * 3, bad_rows="drop", bad_rows_limit=1.0)[0] == 2


def test_equal_faults_are_counted_together_and_the_first_ones_values_shown(command: Command) -> None:
    rows = [{**PAIR, "chosen": "w1 " * length} for length in (1, 500, 1, 700, 1)]
    code, lines = command.dry_run(rows, bad_rows="drop", bad_rows_limit=1.0)
    assert code == 0
    (line,) = [line for line in lines if "bad rows left out" in line]
    assert re.match(
        r"pairs: 2 bad rows left out, the first: 5\d\d tokens \(\d+ prompt \+ 50\d completion\), more", line
    )
    code, (line,) = command.dry_run(rows, bad_rows="drop")
    assert code == 2
    assert re.search(r"\(2 times: 5\d\d tokens \(.*\(line 2, line 4\)\)", line)


def test_columns_by_name(command: Command) -> None:
    rows = [{"q": "w1 w2", "good_text": "w3", "bad_text": "w4", "prompt": "another", "tools": "[]"}] * 2
    columns = {"prompt": "q", "chosen": "good_text", "rejected": "bad_text"}
    code, (line,) = command.dry_run(rows)
    assert code == 2
    assert "did you mean columns: {prompt: q, chosen: good_text, rejected: bad_text}?" in line
    code, lines = command.dry_run(rows, source={"columns": columns})
    assert code == 0
    assert lines[0].startswith("pairs: pairs with a prompt (prompt: q, chosen: good_text, rejected: bad_text)")
    assert "pairs: not used: prompt (2 rows)" in lines
    code, (line,) = command.dry_run(rows, source={"columns": {**columns, "chosen": "good_txt"}})
    assert "there is no column 'good_txt' for chosen; did you mean 'good_text'?" in line
    code, (line,) = command.dry_run(rows, source={"columns": {**columns, "choosen": "good_text"}})
    assert (code, "'choosen' is nothing that a column can be; did you mean chosen?" in line) == (2, True)
    code, (line,) = command.dry_run(rows, source={"columns": {"label": "q"}})
    assert (code, "columns label: q make no known format" in line) == (2, True)


def test_columns_on_the_command_line(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    path = command.folder / "a.jsonl"
    path.write_text(json.dumps({"q": "w1", "up": "w2", "down": "w3"}) + "\n")
    assert run(["data", "inspect", str(path), "--columns", "prompt:q, chosen:up, rejected:down", "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["format"] == "pairs with a prompt (prompt: q, chosen: up, rejected: down)"
    )
    with pytest.raises(SystemExit):
        run(["data", "inspect", str(path), "--columns", "prompt"])
    assert "'prompt' is no role:column, such as prompt:question" in capsys.readouterr().err


def test_a_batch_of_more_pairs_than_there_are_is_said(command: Command) -> None:
    rows = [{**PAIR, "prompt": f"w{i}"} for i in range(8)]
    said = "a step takes some of the {} examples more than once"
    assert f"train.global_batch_pairs 6: {said.format(3)}" in command.dry_run(rows[:3])[1]
    assert not any("more than once" in line for line in command.dry_run(rows)[1])
