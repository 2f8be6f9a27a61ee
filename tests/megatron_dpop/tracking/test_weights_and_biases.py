"""The real wandb package, offline: what it recorded is read back from its files."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpop_base.errors import UserError
from megatron_dpop.commands.main import run as megatron_dpop
from tests.distributed import run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_here

BLOCK_BYTES = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def _records(path: Path) -> Iterator[bytes]:
    """Of a file in LevelDB's log format, after wandb's header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK_BYTES - at % BLOCK_BYTES < 7:
            at += BLOCK_BYTES - at % BLOCK_BYTES
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield whole
            whole = b""


def _recorded(folder: Path) -> tuple[str, dict[int, dict[str, float]], list[str]]:
    """Run id, metrics by step, alerts."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("*.wandb")
    # wandb's own process writes the last of it a moment after the run's end.
    deadline = time.monotonic() + 30
    while not any(pb.Record.FromString(data).HasField("exit") for data in _records(path)):
        assert time.monotonic() < deadline, f"{path} lacks its end"
        time.sleep(0.05)
    history: dict[int, dict[str, float]] = {}
    run_id, alerts = "", []
    for data in _records(path):
        record = pb.Record.FromString(data)
        if record.HasField("run"):
            run_id = record.run.run_id
        if record.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            history[items["_step"]] = items
        if record.HasField("alert"):
            alerts.append(record.alert.title)
    return run_id, history, alerts


def _train_offline_here(tree: dict[str, Any]) -> list[dict[str, Any]]:
    os.environ["WANDB_MODE"] = "offline"  # ranks are forks of a server that may be older than this test's variables
    return train_here(tree)


@pytest.mark.slow
def test_a_run_and_what_resumes_it_are_one(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    write_model(tmp_path / "model", num_hidden_layers=2)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    tree = write_config(
        tmp_path,
        tmp_path / "model",
        logging={"wandb": "megatron-dpop-tests", "samples": 2, "sample_tokens": 2},
        checkpoint={"every": 2},
        train={"steps": 3},
        data={"validation": str(tmp_path / "pairs.jsonl")},
    )
    (metrics,) = run_ranks(_train_offline_here, 1, tree)
    run = tmp_path / "run"
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    run_ranks(_train_offline_here, 1, tree)
    first, second = sorted(folder for folder in (run / "wandb").glob("offline-run-*"))
    (id_1, history_1, _), (id_2, history_2, _) = _recorded(first), _recorded(second)
    assert id_1 == id_2 == json.loads((run / "wandb.json").read_text())["id"]
    assert (sorted(history_1), sorted(history_2)) == ([0, 1, 2, 3], [2, 3])
    assert [history_1[step]["samples/nrows"] for step in (0, 3)] == [2, 2]
    answers = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [answer["step"] for answer in answers] == [0, 0, 3, 3]  # the second start answered at step 3 again
    for line in metrics:
        kept = history_1[line.pop("step")]
        assert {name: kept[name] for name in line} == pytest.approx(line)


def test_an_alert_says_what_the_health_monitor_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    from megatron_dpop.config.schema import WandbConfig
    from megatron_dpop.tracking.weights_and_biases import WandbRun

    run = WandbRun(WandbConfig("tests"), tmp_path, {"loss": {"name": "dpo"}})
    assert run.place.endswith("; wandb sync uploads it")
    run.log(0, {"loss": 1.0})
    run.alert("Gradients explode", "health: step 0: ...")
    run.close()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert _recorded(folder)[2] == ["Gradients explode"]


def test_what_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    from megatron_dpop.config.schema import WandbConfig
    from megatron_dpop.tracking.weights_and_biases import WandbRun

    with pytest.raises(UserError, match=r"logging\.wandb: cannot start .*WANDB_MODE=offline") as raised:
        WandbRun(WandbConfig("a/project"), tmp_path, {})
    assert "\n" not in str(raised.value)
    (tmp_path / "wandb.json").write_text("[]")
    with pytest.raises(UserError, match=r"wandb\.json: not readable; delete it"):
        WandbRun(WandbConfig("tests"), tmp_path, {})


def test_a_missing_package_is_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("megatron_dpop.tracking.weights_and_biases.find_spec", lambda name: None)
    (tmp_path / "config.yaml").write_text(
        f"model: {{path: {tmp_path / 'none'}}}\ndata: {{train: none.jsonl}}\nlogging: {{wandb: my-project}}\n"
        f"run: {{dir: {tmp_path / 'run'}}}\n"
    )
    assert megatron_dpop(["train", str(tmp_path / "config.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("megatron-dpop: error: logging.wandb: the package wandb is not installed; install it")
    assert not (tmp_path / "run").exists()
