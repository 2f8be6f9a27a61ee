"""Killed at any moment, a conversion is recognised as incomplete and continued, not restarted, by the same command."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_convert.conversion import journal, plan, run
from checkpoint_convert.conversion.journal import JOURNAL
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.locate import checkpoint_kind
from checkpoint_convert.manifest import MANIFEST
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.verify import verify
from dpop_base.errors import UserError
from tests.checkpoint_convert.models import save_small

# The command with files so small that even these models take many, and with time to be killed in between.
SLOW_COMMAND = """
import sys, time
from checkpoint_convert import commands, hf_to_megatron, megatron_to_hf
from checkpoint_convert.conversion import run
hf_to_megatron.target_file_bytes = megatron_to_hf.target_file_bytes = lambda total: 20_000
fsync = run.os.fsync
def slow_fsync(descriptor):
    time.sleep({pause})
    fsync(descriptor)
run.os.fsync = slow_fsync
sys.exit(commands.run(sys.argv[1:]))
"""


def start(*arguments: str, pause: float = 0.0) -> "subprocess.Popen[str]":
    code = SLOW_COMMAND.format(pause=pause)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--workers", "2"], stderr=subprocess.PIPE, text=True
    )


def finished_files(target: Path) -> list[str]:
    try:
        lines = (target / JOURNAL).read_text().splitlines()[1:]
    except FileNotFoundError:
        return []
    return [json.loads(line)["name"] for line in lines]


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_killed_and_continued(direction: str, tmp_path: Path) -> None:
    save_small("qwen2", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    source = tmp_path / ("hf" if direction == "hf-to-megatron" else "megatron")
    target = tmp_path / "target"
    process = start(direction, str(source), str(target), pause=0.05)
    deadline = time.monotonic() + 60
    while len(finished_files(target)) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = finished_files(target)
    times = {name: (target / name).stat().st_mtime_ns for name in done}

    with pytest.raises(UserError, match=f"interrupted; continue it with: checkpoint-convert {direction}"):
        checkpoint_kind(target)

    again = start(direction, str(source), str(target))
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert {name: (target / name).stat().st_mtime_ns for name in done} == times  # kept, not written again
    assert not (target / JOURNAL).exists()
    assert (target / MANIFEST).exists()
    assert not list(target.rglob("*.tmp"))
    assert verify(source, target, progress=False).equal


@pytest.mark.slow
def test_killed_at_random_moments_until_it_is_done(tmp_path: Path) -> None:
    save_small("llama-attention-bias", tmp_path / "hf")
    target = tmp_path / "target"
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        process = start("hf-to-megatron", str(tmp_path / "hf"), str(target), pause=0.02)
        try:
            process.wait(0.5 + 1.5 * float(torch.rand(1, generator=generator)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert process.returncode == 0
    assert verify(tmp_path / "hf", target, progress=False).equal


def test_done_is_not_done_again_and_another_conversion_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small("qwen2", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "megatron").rglob("*") if path.is_file()}
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    monkeypatch.chdir(tmp_path)
    hf_to_megatron(Path("hf"), Path("megatron"), progress=False)  # spelled in another way
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(UserError, match="already holds another conversion"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", dtype="bf16", progress=False)


def test_interrupted_conversion_of_another_source_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = save_small("qwen2", tmp_path / "hf")
    _fail_writing(monkeypatch, errno.ENOSPC, after=2)
    with pytest.raises(UserError):
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    monkeypatch.undo()
    save_file(small.tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="interrupted conversion of another source"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    save_small("qwen2", tmp_path / "hf")
    first = start("hf-to-megatron", str(tmp_path / "hf"), str(tmp_path / "megatron"), pause=0.2)
    while not finished_files(tmp_path / "megatron"):
        assert first.poll() is None
        time.sleep(0.01)
    second = start("hf-to-megatron", str(tmp_path / "hf"), str(tmp_path / "megatron"))
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "another process is converting into this folder" in errors
    first.kill()
    first.communicate()


def test_one_that_is_finished_meanwhile_is_found_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process ends between this one's look at the folder and its lock, and removes what would be locked."""
    save_small("qwen2", tmp_path / "hf")
    real, written = journal.lock, {}

    def late(descriptor: int, *, wait: bool) -> bool:
        monkeypatch.setattr(journal, "lock", real)
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
        written.update({path: path.stat().st_mtime_ns for path in (tmp_path / "megatron").rglob("*") if path.is_file()})
        return real(descriptor, wait=wait)

    monkeypatch.setattr(journal, "lock", late)
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "megatron").rglob("*") if path.is_file()} == written


@pytest.mark.slow
def test_many_at_once_leave_one_conversion(tmp_path: Path) -> None:
    save_small("qwen2", tmp_path / "hf")
    words = ("hf-to-megatron", str(tmp_path / "hf"), str(tmp_path / "megatron"))
    processes = [start(*words, pause=0.01) for _ in range(8)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        refused = process.returncode == 2 and "another process is converting into this folder" in errors
        assert refused or process.returncode == 0, errors
    assert any(process.returncode == 0 for process in processes)
    assert not (tmp_path / "megatron" / JOURNAL).exists()
    assert verify(tmp_path / "hf", tmp_path / "megatron", progress=False).equal


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("dpop_base.files.fcntl.flock", refuse)
    save_small("qwen2", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    assert verify(tmp_path / "hf", tmp_path / "megatron", progress=False).equal


def _fail_writing(monkeypatch: pytest.MonkeyPatch, number: int, *, after: int) -> None:
    """The disk refuses from the `after`-th synced file on: a real OSError from the place where it would come."""
    monkeypatch.setattr("checkpoint_convert.hf_to_megatron.target_file_bytes", lambda total: 20_000)
    assert plan.target_file_bytes(1) > 20_000
    fsync, count = os.fsync, [0]

    def failing(descriptor: int) -> None:
        count[0] += 1
        if count[0] > 2 * after:  # a file, then its line in the journal
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(run.os, "fsync", failing)


@pytest.mark.skipif(not Path("/dev/shm").is_dir() or os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_full_disk_is_one_line_and_continues_when_freed(tmp_path: Path) -> None:
    small = save_small("qwen2", tmp_path / "hf")
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(tensor.numel() * 4 for tensor in small.tensors.values())
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size + 60_000}", "none", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        ballast = disk / "ballast"
        process = start("hf-to-megatron", str(tmp_path / "hf"), str(disk / "out"), pause=0.1)
        while not finished_files(disk / "out"):  # the space looked sufficient; then something else takes it
            assert process.poll() is None
            time.sleep(0.01)
        with open(ballast, "wb", buffering=0) as stream, pytest.raises(OSError, match="No space left"):  # noqa: PT012
            while True:
                stream.write(bytes(size))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert errors.count("\n") == 1
        assert "no space is left; free some and run the same command again" in errors
        assert not list(disk.rglob("*.tmp"))
        ballast.unlink()
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(disk)], check=True)
        again = start("hf-to-megatron", str(tmp_path / "hf"), str(disk / "out"))
        _, errors = again.communicate(timeout=60)
        assert again.returncode == 0, errors
        assert verify(tmp_path / "hf", disk / "out", progress=False).equal
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small("qwen2", tmp_path / "hf")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    rows = free // (4 * 64) + 1_000_000  # an embedding larger than the disk, as a sparse file
    config["vocab_size"] = rows
    config["tie_word_embeddings"] = True
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    _grow_embedding(tmp_path / "hf" / "model.safetensors", rows)
    with pytest.raises(UserError, match="GB are needed and"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    assert not list((tmp_path / "megatron").rglob("*.distcp"))


def _grow_embedding(path: Path, rows: int) -> None:
    from checkpoint_convert.tensors.safetensors_file import SafetensorsFile, safetensors_header

    tensors = load_file(path)
    tensors.pop("lm_head.weight")
    names = sorted(tensors)
    shapes = {n: ((rows, 64) if n == "model.embed_tokens.weight" else tuple(tensors[n].shape)) for n in names}
    header = safetensors_header((n, shapes[n], "fp32") for n in names)
    with open(path, "wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + sum(torch.Size(shapes[n]).numel() * 4 for n in names))
    assert SafetensorsFile(path).tensors.keys() == tensors.keys()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_read_only_target(tmp_path: Path) -> None:
    save_small("qwen2", tmp_path / "hf")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "locked" / "megatron", progress=False)


def test_target_that_cannot_be_a_folder(tmp_path: Path) -> None:
    save_small("qwen2", tmp_path / "hf")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "file", progress=False)
    with pytest.raises(UserError, match="cannot be written"):
        hf_to_megatron(tmp_path / "hf", tmp_path / "file" / "below", progress=False)
    with pytest.raises(UserError, match="cannot be written"):
        hf_to_megatron(tmp_path / "hf", Path("/proc/megatron"), progress=False)


def test_a_source_that_changes_underneath(tmp_path: Path) -> None:
    save_small("qwen2", tmp_path / "hf")
    process = start("hf-to-megatron", str(tmp_path / "hf"), str(tmp_path / "megatron"), pause=0.1)
    while not finished_files(tmp_path / "megatron"):
        assert process.poll() is None
        time.sleep(0.01)
    os.truncate(tmp_path / "hf" / "model.safetensors", 1000)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "changed while it was being converted" in errors or "ends at byte" in errors
    with pytest.raises(UserError, match="interrupted"):
        checkpoint_kind(tmp_path / "megatron")


def test_exported_twice_is_the_same_to_the_byte(tmp_path: Path) -> None:
    save_small("qwen3", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    for name in ("one", "two"):
        megatron_to_hf(tmp_path / "megatron", tmp_path / name, progress=False)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
