"""Whether a torch_dist folder still holds the bytes that were written: `checksums.json` beside them tells."""

import json
from pathlib import Path

from dpop_base.checksums import ALGORITHM, seal, unseal
from dpop_base.files import write_json
from megatron_dpop.checkpoints.digests import Digests, named_digests

CHECKSUMS = "checksums.json"
_TENSORS = ".distcp"


def content_files(folder: Path) -> dict[str, Path]:
    """Returns, by name, the files of a torch_dist folder that its content is read from."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.name != CHECKSUMS}


def write_checksums(folder: Path, digests: dict[str, str]) -> None:
    """Written after all that it names."""
    write_json(folder / CHECKSUMS, seal({"algorithm": ALGORITHM, "files": digests}))


def read_checksums(folder: Path) -> dict[str, str] | None:
    """None where there are none, or of an algorithm that is not ours. Raises ValueError where they are damaged."""
    try:
        stored = unseal(json.loads((folder / CHECKSUMS).read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        raise ValueError(f"{CHECKSUMS} is damaged") from None
    return dict(stored["files"]) if stored["algorithm"] == ALGORITHM else None


def damage(folder: Path, digests: Digests, *, tensors: bool = True) -> str | None:
    """What is not as it was written, of a folder that has checksums; None where all is, or where there are none.

    `tensors`: whether the files that hold tensors are read too. Loading checks what it takes of them itself, by the
    CRC-32 of each tensor.
    """
    try:
        written = read_checksums(folder)
    except ValueError as error:
        return str(error)
    if written is None:
        return None
    present = content_files(folder)
    if missing := sorted(written.keys() - present.keys()):
        return f"{missing[0]} is missing"
    asked = {name: present[name] for name in written if tensors or present[name].suffix != _TENSORS}
    found = named_digests(asked, digests)
    return next((f"{name} is damaged: its content has changed" for name in asked if found[name] != written[name]), None)
