"""What may change between the starts of a run: the code's list is the documents', and the only one."""

import json
import re
from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.data.load import DataSource, load_dataset
from megatron_dpop.tracking.run_folder import FREE_TO_CHANGE, GROW_TOGETHER, RunFolder
from tests.tiny import write_config, write_tokenizer

DOCUMENT = Path(__file__).parents[3] / "docs" / "resume.md"


def _documented() -> dict[str, str]:
    """By key, or section with `.*`, what it may do."""
    table = DOCUMENT.read_text().split("| key | may |")[1].split("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {key: may.split(":")[0] for keys, may in rows for key in re.findall(r"`([^`]+)`", keys)}


def test_the_documents_name_exactly_what_may_change() -> None:
    change = {key + "*" if key.endswith(".") else key: "change" for key in FREE_TO_CHANGE}
    assert _documented() == change | dict.fromkeys(GROW_TOGETHER, "grow")


CHANGES = {
    "logging.every": 5,
    "checkpoint.keep": 9,
    "parallel.tensor": 2,
    "reference.cache": "elsewhere",
    "train.recompute": "full",
    "train.steps": 30,
}
REFUSED = {
    "train.steps": 2,
    "train.seed": 1,
    "optimizer.lr": 1.0,
    "data.max_tokens": 63,
    "loss.beta": 0.5,
    "model.path": "other",
    "precision.params": "bf16",
}


def _folder(tmp_path: Path, key: str | None = None, value: object = None) -> RunFolder:
    tree = write_config(tmp_path, Path("model"), run={"dir": str(tmp_path / "run")})
    if key is not None:
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = value
    return RunFolder(config_from_dict(tree, origin="test"))


def test_a_warm_up_that_is_a_share_grows_with_the_run_and_the_length_is_named_first(tmp_path: Path) -> None:
    def folder(steps: int, warmup: int) -> RunFolder:
        tree = write_config(tmp_path, Path("model"), run={"dir": str(tmp_path / "run")})
        tree["train"]["steps"], tree["optimizer"]["warmup_steps"] = steps, warmup
        return RunFolder(config_from_dict(tree, origin="test"))

    folder(20, 2).write_start(world_size=1)
    folder(30, 3).check()
    with pytest.raises(UserError, match=r"train\.steps = 20, not 10"):
        folder(10, 1).check()
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps = 2, not 3"):
        folder(20, 3).check()
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps = 2, not 1"):
        folder(30, 1).check()


@pytest.mark.parametrize("key", CHANGES)
def test_a_run_goes_on_with_another(tmp_path: Path, key: str) -> None:
    _folder(tmp_path).write_start(world_size=1)
    _folder(tmp_path, key, CHANGES[key]).check()


@pytest.mark.parametrize("key", REFUSED)
def test_a_run_does_not_go_on_with_another(tmp_path: Path, key: str) -> None:
    _folder(tmp_path).write_start(world_size=1)
    with pytest.raises(
        UserError, match=f"belongs to a run with {key} = .*, not {REFUSED[key]!r}; choose a new run.dir"
    ):
        _folder(tmp_path, key, REFUSED[key]).check()


def test_a_key_that_a_newer_version_adds_is_no_change(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    folder.write_start(world_size=1)
    config = folder.path / "config.yaml"
    kept = [line for line in config.read_text().splitlines() if "too_long" not in line and "share_prefix" not in line]
    config.write_text("\n".join(kept) + "\n")
    folder.check()


def test_rows_that_gave_no_example_are_listed(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    write_tokenizer(tokenizer)
    rows = [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}] * 3 + [{"prompt": "w1", "chosen": "w2"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(tmp_path / "a.jsonl")
    options = {"max_tokens": 64, "bad_rows": "drop", "bad_rows_limit": 0.5, "workers": 1, "progress": False}
    folder = _folder(tmp_path)
    folder.write_start(world_size=1)
    folder.write_rows_left_out({"train": load_dataset([source], tokenizer, **options), "validation": None})
    assert json.loads(folder.rows_left_out.read_text()) == {
        "data": "train",
        "source": str(tmp_path / "a.jsonl"),
        "row": "line 4",
        "reason": "missing `rejected`",
    }
