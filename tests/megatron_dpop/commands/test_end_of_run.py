"""What a run says at its end, what it keeps, and what `megatron-dpop clean` removes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_dpop.checkpoints.digests import digests_here, named_digests
from megatron_dpop.checkpoints.intact import content_files, write_checksums
from megatron_dpop.commands.main import run
from tests.commands import start, write_world


def _output(*words: object) -> str:
    process = start(*words)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def _bytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]


@pytest.mark.slow
def test_a_run_ends_with_before_and_after_and_can_be_cleaned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_world(
        tmp_path,
        parallel={"tensor": 1},
        data={"validation": str(tmp_path / "pairs.jsonl")},
        train={"steps": 4, "validate_every": 2},
        checkpoint={"every": 2, "export_hf": True},
    )
    folder = tmp_path / "run"
    said = _output("train", config)
    steps = re.findall(r"^validation after (\d) steps: loss ", said, re.MULTILINE)
    assert steps == ["0", "2", "4"]
    assert said.index("validation after 2 steps") < said.index("dpop 3/4")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "validation/loss" in line)
    (shown,) = re.findall(r"^chosen - reference \(nats\) +0\.0000 +(\S+) +\S+$", said, re.MULTILINE)
    assert float(shown) == pytest.approx(last["validation/logps/chosen_minus_reference"], abs=6e-5)
    (reckoned,) = re.findall(r"^disk: about (\S+ \S+) in ", said, re.MULTILINE)
    (found,) = re.findall(r"^kept: (\S+ \S+) in ", said, re.MULTILINE)
    assert _bytes(reckoned) == pytest.approx(_bytes(found), rel=0.15)
    assert "\nnext: megatron-dpop report " in said

    assert run(["clean", str(folder), "--dry-run"]) == 0
    would = capsys.readouterr().out
    assert (folder / "checkpoints" / "iter_0000002").is_dir()
    assert run(["clean", str(folder)]) == 0
    assert capsys.readouterr().out == would.replace("would be removed", "removed")
    assert not (folder / "initial").exists()
    left = [path.name for path in (folder / "checkpoints").glob("iter_*")]
    assert left == ["iter_0000004"]
    quiet = _output("train", config, "--train.steps=5", "--quiet")
    assert quiet.startswith("finished: trained 5 steps")


def test_clean_leaves_the_best_and_whatever_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("megatron_dpop.checkpoints.complete.incompleteness", lambda folder: None)
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (2, 4, 6, 8):
        (checkpoints / f"iter_{step:07d}").mkdir(parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("6")  # 8 is being written
    (tmp_path / "run" / "config.yaml").write_text("{}")
    (tmp_path / "run" / "best.json").write_text('{"step": 2}')
    assert run(["clean", str(tmp_path / "run")]) == 0
    assert sorted(path.name[-1] for path in checkpoints.glob("iter_*")) == ["2", "6", "8"]
    (tmp_path / "run" / "best.json").write_text("[]")
    assert run(["clean", str(tmp_path / "run")]) == 2
    assert "best.json: not readable" in capsys.readouterr().err
    assert run(["clean"]) == 2
    assert "clean: nothing is named" in capsys.readouterr().err


def test_clean_leaves_an_older_checkpoint_where_the_newest_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one is all that the run can go on from."""
    monkeypatch.setattr("megatron_dpop.checkpoints.complete.incompleteness", lambda folder: None)
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (2, 4, 6):
        folder = checkpoints / f"iter_{step:07d}"
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").write_bytes(b"weights")
        write_checksums(folder, named_digests(content_files(folder), digests_here))
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("6")
    (tmp_path / "run" / "config.yaml").write_text("{}")
    (checkpoints / "iter_0000006" / "__0_0.distcp").write_bytes(b"weighta")
    assert run(["clean", str(tmp_path / "run")]) == 0
    assert sorted(path.name[-1] for path in checkpoints.glob("iter_*")) == ["4", "6"]


def test_clean_refuses_a_run_that_is_being_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    holder = "import sys, time\nfrom pathlib import Path\nfrom megatron_dpop.runtime.folder_lock import sole_writer\n"
    holder += "with sole_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert run(["clean", str(tmp_path)]) == 2
        process.kill()
    assert "is being written by" in capsys.readouterr().err


def test_clean_removes_tokens_that_were_not_read_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os
    import time

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "megatron_dpop" / "tokens"
    cache.mkdir(parents=True)
    for name, days in (("old", 40), ("new", 1)):
        (cache / name).write_bytes(b"x" * 2000)
        os.utime(cache / name, (time.time() - days * 86400,) * 2)
    assert run(["clean", "--caches"]) == 0
    assert [path.name for path in cache.iterdir()] == ["new"]
    assert "2 kB  removed" in capsys.readouterr().out
