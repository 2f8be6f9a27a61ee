"""Writes the manifest of a finished conversion: every tensor with shape, dtype, place and checksums, and every file."""

from pathlib import Path
from typing import Any

from checkpoint_convert.conversion.journal import JOURNAL, WrittenFile
from checkpoint_convert.conversion.plan import OutputFile
from checkpoint_convert.manifest import MANIFEST
from dpop_base.checkpoint_names import TRACKER
from dpop_base.checksums import ALGORITHM, file_digests, seal
from dpop_base.files import write_json

# What other programs rightly write anew, and what readers refuse by itself where it is damaged.
_UNCHECKED = (JOURNAL, MANIFEST, TRACKER)


def write_manifest(
    folder: Path, *, fingerprint: str, layout: str, files: list[OutputFile], written: dict[str, WrittenFile]
) -> None:
    """Written last: its presence means that everything else is there."""
    tensors: dict[str, dict[str, Any]] = {}
    for file in files:
        for piece, place in zip(file.pieces, written[file.name].pieces, strict=True):
            entry = tensors.setdefault(
                piece.tensor, {"dtype": piece.dtype, "shape": [0, *piece.shape[1:]], "pieces": []}
            )
            entry["shape"][0] += piece.shape[0]
            entry["pieces"].append(
                {
                    "file": file.name,
                    "first_row": piece.first_row,
                    "rows": piece.shape[0],
                    "offset": place.offset,
                    "length": place.length,
                    "crc32": f"{place.crc32:08x}",
                }
            )
    described: dict[str, dict[str, Any]] = {}
    for file in files:
        found = written[file.name]
        described[file.name] = {"bytes": found.num_bytes}
        if found.head_crc32 is not None:
            described[file.name]["head_crc32"] = f"{found.head_crc32:08x}"
    others = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".conversion") and path.name not in _UNCHECKED
    )
    digests = {
        path.relative_to(folder).as_posix(): digest
        for path, digest in file_digests(
            path for path in others if path.relative_to(folder).as_posix() not in described
        ).items()
    }
    value = {
        "fingerprint": fingerprint,
        "layout": layout,
        "files": described,
        "algorithm": ALGORITHM,
        "digests": digests,
        "tensors": tensors,
    }
    write_json(folder / MANIFEST, seal(value))
