"""A run's folder after accidents: what is damaged is found, said and passed over; what is not its own is left alone."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.distributed import run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import run_here


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    write_model(folder / "model", dtype="bfloat16", num_hidden_layers=2)
    write_pairs(folder / "pairs.jsonl", 40)
    return folder


def _tree(world: Path, run: str, *, steps: int, **sections: object) -> dict:
    return write_config(
        world,
        world / "model",
        precision={"params": "bf16"},
        optimizer={"schedule": "constant", "warmup_steps": 1},
        train={"steps": steps},
        checkpoint={"every": 2, "keep": 2, **sections.pop("checkpoint", {})},  # type: ignore[dict-item]
        run={"dir": str(world / run)},
        **sections,
    )


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def _flip_largest(checkpoint: Path) -> None:
    _flip(max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size))


def _ruin_without_checksums(checkpoint: Path) -> None:
    """As an older version left it, and of the right length."""
    (checkpoint / "checksums.json").unlink(missing_ok=True)
    for path in checkpoint.glob("*.distcp"):
        path.write_bytes(b"\xff" * path.stat().st_size)


SPOILT = {
    "bit": (_flip_largest, "distcp: is damaged: the ", 1),
    "content": (_ruin_without_checksums, ".distcp", 1),
    "bit of one rank's": (_flip_largest, "distcp: is damaged: the ", 2),
}


@pytest.mark.parametrize(
    "case", ["content", *(pytest.param(name, marks=pytest.mark.slow) for name in SPOILT if name != "content")]
)
def test_a_damaged_checkpoint_is_passed_over_and_a_run_may_grow(world: Path, case: str) -> None:
    """From the checkpoint before, a longer run goes on as if it had never been interrupted, or shorter."""
    spoil, reason, ranks = SPOILT[case]
    run, parallel = world / case, {"tensor": ranks}
    short, long = (_tree(world, case, steps=steps, parallel=parallel) for steps in (4, 6))
    again = partial(spoil, run / "checkpoints" / "iter_0000004")
    undisturbed = _tree(world, f"whole {case}", steps=6, parallel=parallel)
    _, resumed, whole = run_ranks(run_here, ranks, short, again, long, undisturbed)[0]
    assert f"passing over {run / 'checkpoints' / 'iter_0000004'}: " in resumed.said
    assert reason in resumed.said
    assert "resuming after step 2" in resumed.said
    assert resumed.error is None
    assert resumed.comparable() == whole.comparable()
    assert "reference (train)" in resumed.said, "the examples of the added steps"


def _add_foreign(checkpoints: Path) -> None:
    shutil.copytree(checkpoints / "iter_0000002", checkpoints / "iter_0000002_best")
    shutil.copytree(checkpoints / "iter_0000002", checkpoints / "iter_2")
    (checkpoints / "iter_0000001").symlink_to("iter_0000002_best")
    (checkpoints / "iter_9999999").mkdir()
    (checkpoints / "iter_notes").write_text("mine")


def test_what_others_put_beside_checkpoints_is_left_alone(world: Path) -> None:
    checkpoints = world / "foreign" / "checkpoints"
    short, long = (_tree(world, "foreign", steps=steps, checkpoint={"keep": 1}) for steps in (2, 6))
    _, resumed = run_ranks(run_here, 1, short, partial(_add_foreign, checkpoints), long)[0]
    assert resumed.error is None
    assert f"passing over {checkpoints / 'iter_9999999'}: latest_checkpointed_iteration.txt does not" in resumed.said
    assert {path.name for path in checkpoints.glob("iter_*")} == {
        *("iter_0000006", "iter_0000002_best", "iter_2", "iter_0000001", "iter_9999999", "iter_notes")
    }


def test_a_damaged_reference_is_computed_anew(world: Path) -> None:
    kept = world / "reference" / "train.safetensors"
    first, second = (_tree(world, run, steps=2, reference={"cache": str(kept.parent)}) for run in ("one", "two"))
    one, two = run_ranks(run_here, 1, partial(os.umask, 0o027), first, partial(_flip, kept), second)[0]
    assert f"{kept} is damaged (" in two.said
    assert "it is now train.safetensors.damaged, and computed anew" in two.said
    assert two.comparable() == one.comparable()
    assert kept.stat().st_mode & 0o777 == 0o640, "as the umask says"


def _spoil_metrics(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b"\0\0\0", *lines[1:3], b'{"step": 1, "lo', *lines[3:], b'{"step": 4, "l']))


def test_a_bad_line_of_metrics_is_kept_aside(world: Path) -> None:
    run = world / "lines"
    short, long = (_tree(world, "lines", steps=steps) for steps in (4, 6))
    spoil = partial(_spoil_metrics, run / "metrics.jsonl")
    first, resumed = run_ranks(run_here, 1, short, spoil, long)[0]
    assert resumed.comparable()[:4] == first.comparable()
    assert [line["step"] for line in resumed.metrics] == list(range(6))
    assert "2 lines that cannot be used moved to metrics.rejected.jsonl; all others are kept" in resumed.said
    assert (run / "metrics.rejected.jsonl").read_bytes() == b'\0\0\0\n{"step": 1, "lo\n'


BAD_LINES = (
    *(b"", b"{", b"[1]", b"3", b'"step"', b"{}", b'{"loss": 1.0}', b'{"step": "1"}', b'{"step": true}'),
    *(b'{"step": -1}', b'{"step": 1, "loss": "x"}', b'{"step": 1, "loss": [1]}', b'{"step": 1, "loss": null}'),
    *(b"\xff\xfe", b"[" * 100_000, b'{"step": 0, "loss": 2.0}'),
)


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_lines_that_are_no_metrics(tmp_path: Path, line: bytes) -> None:
    from megatron_dpop.tracking.history import keep_history

    good = [{"step": step, "loss": 0.5 + step} for step in range(3)]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([json.dumps(good[0]).encode(), line, *(json.dumps(g).encode() for g in good[1:]), b""]))
    said: list[str] = []
    assert keep_history(path, 2, said.append) == good[:2]
    assert len(said) == 1
    assert path.with_name("metrics.rejected.jsonl").read_bytes() == line + b"\n"
    assert path.read_text() == "".join(json.dumps(g) + "\n" for g in good[:2])


def test_a_digit_that_changed_is_noticed(tmp_path: Path) -> None:
    from megatron_dpop.tracking.history import add_line, keep_history

    path = tmp_path / "metrics.jsonl"
    for step in range(6):
        add_line(path, {"step": step, "loss": 0.5 + step})
    said: list[str] = []
    assert len(keep_history(path, 5, said.append)) == 5
    assert said == [], "as written, and step 5 is to be taken again"
    path.write_text(path.read_text().replace("2.5", "2.6"))
    changed = path.read_bytes()
    for _ in range(2):  # every time that the run goes on
        said.clear()
        assert [line["loss"] for line in keep_history(path, 5, said.append)] == [0.5, 1.5, 2.6, 3.5, 4.5]
        (line,) = said
        assert "the line of step 2 is not as written any more" in line
        assert path.read_bytes() == changed, "nothing is deleted"
    path.write_bytes(b"".join(changed.splitlines(keepends=True)[:1]))
    said.clear()
    keep_history(path, 5, said.append)
    assert len(said) == 1
    assert "the lines of steps 1, 2, 3, 4 are missing" in said[0]
    add_line(path, {"step": 5, "loss": 5.25})
    said.clear()
    keep_history(path, 6, said.append)
    assert "steps 1, 2, 3, 4 are missing" in said[0]
