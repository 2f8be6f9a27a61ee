"""A template that writes today's date: a run keeps the day on which it began, wherever that day is asked for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpop_base.errors import UserError
from megatron_dpop.config.load import config_from_dict, load_config
from megatron_dpop.training.template_date import date_words, with_date
from tests.tiny import TEMPLATE, write_config, write_model, write_pairs

CLOCK = Path(__file__).parents[2] / "clock"
DATED = "{{ 'w' ~ strftime_now('%d') | int ~ ' ' }}" + TEMPLATE  # the day of the month as a word that the model knows


def _tree(**data: object) -> dict:
    return {"model": {"path": "m"}, "data": {"train": "pairs.jsonl", **data}, "run": {"dir": "run"}}


def _dated(tree: dict) -> str | None:
    return with_date(config_from_dict(tree, origin="test")).data.template_date


def test_the_date_is_the_config_s_or_the_run_s_or_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("megatron_dpop.training.template_date.today", lambda: "2026-11-26")
    assert _dated(_tree()) == "2026-11-26"
    assert _dated(_tree(template_date="2026-01-02")) == "2026-01-02"
    begun = with_date(config_from_dict(_tree(), origin="test"))
    from megatron_dpop.tracking.run_folder import RunFolder

    RunFolder(begun).write_start(world_size=1)
    monkeypatch.setattr("megatron_dpop.training.template_date.today", lambda: "2026-11-27")
    assert _dated(_tree()) == "2026-11-26", "the run's own"
    RunFolder(with_date(config_from_dict(_tree(), origin="test"))).check()
    with pytest.raises(UserError, match=r"data\.template_date = '2026-11-26', not '2026-11-27'"):
        RunFolder(config_from_dict(_tree(template_date="2026-11-27"), origin="test")).check()


def test_the_date_of_a_reference_that_was_computed_before_is_the_run_s(tmp_path: Path) -> None:
    from megatron_dpop.training.identity import Identity, write_identity

    tree = {**_tree(), "run": {"dir": str(tmp_path)}}
    write_identity(tmp_path, Identity({}, {}, template_date="2026-03-04"))
    assert _dated(tree) == "2026-03-04"


def test_yaml_s_own_dates_are_dates_and_other_words_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(_tree()))
    found = load_config(tmp_path / "c.yaml", ["--data.template_date", "2026-11-26"])
    assert found.data.template_date == "2026-11-26"
    assert date_words(found) == ["--data.template_date", "2026-11-26"]
    with pytest.raises(UserError, match=r"data\.template_date: 'soon' is not valid: give a date"):
        load_config(tmp_path / "c.yaml", ["--data.template_date", "soon"])


def _start(words: list[object], day: str, cache: Path) -> None:
    """The command, on that day, with a token cache of its own."""
    paths = [str(CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {"PYTHONPATH": os.pathsep.join(paths), "TODAY": day, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-m", "megatron_dpop", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **given, "MEGATRON_DPOP_DEVICE": "cpu"},
    )
    assert done.returncode == 0, done.stderr


def _metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]


@pytest.mark.slow
def test_a_run_that_goes_on_another_day_equals_the_undisturbed_one(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(DATED)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    tree = write_config(tmp_path, tmp_path / "model", checkpoint={"every": 2, "async": False})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    whole, stopped, other = (tmp_path / name for name in ("whole", "stopped", "other"))
    command = ["train", tmp_path / "config.yaml", "--run.dir"]
    _start([*command, whole], "2026-11-26", tmp_path / "first")
    assert yaml.safe_load((whole / "config.yaml").read_text())["data"]["template_date"] == "2026-11-26"
    shutil.copytree(whole, stopped)
    checkpoints = sorted((stopped / "checkpoints").glob("iter_*"))
    assert len(checkpoints) > 1
    for folder in checkpoints[1:]:
        shutil.rmtree(folder)
    (stopped / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(int(checkpoints[0].name[5:])))
    shutil.rmtree(stopped / "reference", ignore_errors=True)  # so that it is computed anew
    _start([*command, stopped], "2026-11-27", tmp_path / "second")
    assert _metrics(stopped) == _metrics(whole)
    _start([*command, other], "2026-11-27", tmp_path / "first")
    assert _metrics(other) != _metrics(whole), "a run of its own has the tokens of its own day"
