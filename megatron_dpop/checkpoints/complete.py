"""Which checkpoint a run goes on from: the last complete one."""

from collections.abc import Callable, Iterator
from pathlib import Path

from checkpoint_convert.tensors.pickles import load_dcp_metadata
from dpop_base.checkpoint_names import METADATA, TRACKER, iteration_name, missing_part
from dpop_base.errors import UserError
from dpop_base.files import write_text
from megatron_dpop.checkpoints.intact import CHECKSUMS


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something that a run could lose by going on with other files."""
    return (folder / TRACKER).exists()


def saved_iterations(folder: Path) -> list[int]:
    """Returns the iterations of a run's checkpoints, oldest first, by their names; other entries are left alone."""
    numbers = [path.name.removeprefix("iter_") for path in folder.glob("iter_*") if path.is_dir()]
    found = (int(number) for number in numbers if number.isascii() and number.isdecimal())
    names = {path.name for path in folder.glob("iter_*") if not path.is_symlink()}
    return sorted(iteration for iteration in set(found) if iteration_name(iteration) in names)


def complete_iterations(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """The complete checkpoints of a run, newest first; `say` hears of those that are passed over.

    The tracker is written after everything that it names, so what it does not name yet is not complete. What it names
    is looked at, since a file system that lost its power or its space may have kept the name and not the content.
    Raises UserError where the tracker cannot be read.
    """
    tracked = _tracked(folder, say)
    for iteration in reversed(saved_iterations(folder)):
        path = folder / iteration_name(iteration)
        untracked = f"{TRACKER} does not name it yet, so that it may be half-written"
        reason = untracked if iteration > tracked else incompleteness(path)
        if reason is None:
            yield iteration
        else:
            say(f"passing over {path}: {reason}")


def incompleteness(folder: Path) -> str | None:
    """What a torch_dist checkpoint lacks, or None where it is complete: each file there, and as long as it should be.

    Told from names and lengths, in seconds for any size. Megatron writes `.metadata` after all tensors and
    `metadata.json` last of all.
    """
    if name := missing_part(folder):
        return f"it has no {name}"
    try:
        metadata = load_dcp_metadata((folder / METADATA).read_bytes())
    except Exception as error:  # a damaged pickle raises nearly anything
        return f"{METADATA} cannot be read: {type(error).__name__}"
    ends: dict[str, int] = {}
    for place in metadata.storage_data.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in sorted(ends.items()):
        path = folder / name
        length = path.stat().st_size if path.is_file() else 0
        if length < end:
            return f"{name} is {length} bytes long and should be {end}"
    return None


def _tracked(folder: Path, say: Callable[[str], None]) -> int:
    """The newest checkpoint that may be taken: a user who goes back writes an older one. A tracker that is damaged is
    written anew where checksums, which are written just before it, show what is complete."""
    tracker = folder / TRACKER
    if not tracker.exists():
        return -1
    text = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if text.isdecimal():
        return int(text)
    for iteration in reversed(saved_iterations(folder)):
        path = folder / iteration_name(iteration)
        if (path / CHECKSUMS).is_file() and incompleteness(path) is None:
            say(f"{tracker}: holds {text[:40]!r}; {path.name} is the newest complete checkpoint")
            write_text(tracker, str(iteration))
            return iteration
    raise UserError(f"{tracker}: holds {text[:40]!r}; write the iteration to go on from into it, or delete it")
