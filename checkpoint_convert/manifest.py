"""What a finished conversion left word of: each file's and each tensor's checksums, which whoever reads them checks."""

import json
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from dpop_base.checksums import ALGORITHM, crc32, file_digests, unseal
from dpop_base.errors import UserError
from dpop_base.files import is_file_name

MANIFEST = "conversion-manifest.json"
_PARTS = {"fingerprint", "files", "tensors"}  # of manifests of before they had a seal, which tell of elements alone
_READ_BYTES = 1 << 20
_LARGEST_BYTES = 256 << 20


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file, and their CRC-32."""

    offset: int
    length: int
    crc32: int
    what: str


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none. Raises UserError where it is damaged."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ValueError("too large")
        manifest = dict(json.loads(path.read_text(encoding="utf-8")))
        if manifest.keys() != _PARTS:
            manifest = unseal(manifest)
        if not _is_well_formed(manifest):
            raise ValueError("not a manifest")
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{path}: is damaged; remove the folder and convert again") from None


def _is_well_formed(manifest: dict[str, Any]) -> bool:
    try:
        named = all(_is_relative(name) and type(file["bytes"]) is int for name, file in manifest["files"].items())
        for tensor in manifest["tensors"].values():
            for piece in tensor["pieces"]:
                named = named and piece["file"] in manifest["files"] and type(piece["offset"]) is int
                named = named and type(piece["length"]) is int and int(piece["crc32"], 16) >= 0
        return named and all(map(_is_relative, manifest.get("digests", {})))
    except (KeyError, AttributeError, TypeError, ValueError):
        return False


def _is_relative(name: str) -> bool:
    return all(map(is_file_name, name.split("/")))


def manifest_folder(folder: Path) -> Path | None:
    """Where the manifest is that tells of a folder: there, or above it; None where the folder is no conversion's."""
    for candidate in (folder, folder.parent):
        if (candidate / MANIFEST).is_file():
            manifest = read_manifest(candidate / MANIFEST)
            mine = candidate == folder or any(
                n.startswith(f"{folder.name}/") for n in (manifest or {}).get("files", ())
            )
            return candidate if mine else None
    return None


def check_small_files(folder: Path) -> None:
    """
    Raises UserError where a file of a converted folder beside the weights (config, tokenizer, metadata) is not, to the
    bit, what the conversion wrote. Files that were removed pass, and folders that no conversion wrote. Weights are
    checked when they are read.
    """
    root = manifest_folder(folder)
    manifest = None if root is None else read_manifest(root / MANIFEST)
    if root is None or manifest is None or manifest.get("algorithm") != ALGORITHM:
        return
    digests = {root / name: digest for name, digest in manifest["digests"].items() if (root / name).is_file()}
    found = file_digests(digests, workers=1)
    for path, digest in digests.items():
        if found[path] != digest:
            raise UserError(
                f"{path}: is not as it was written by the conversion that made this folder; restore it or convert "
                f"again, or, where you changed it yourself, delete {root / MANIFEST}, without which nothing here is "
                "checked"
            )


def stretches_of(folder: Path) -> dict[str, list[Stretch]]:
    """Returns, by file of a converted folder's weights, the bytes that have a checksum; empty for any other folder."""
    manifest = read_manifest(folder / MANIFEST)
    found: defaultdict[str, list[Stretch]] = defaultdict(list)
    for tensor, entry in (manifest or {"tensors": {}})["tensors"].items():
        for piece in entry["pieces"]:
            found[piece["file"]].append(
                Stretch(piece["offset"], piece["length"], int(piece["crc32"], 16), f"tensor {tensor}")
            )
    for name, file in (manifest or {"files": {}})["files"].items():
        if "head_crc32" in file:
            first = min((stretch.offset for stretch in found[name]), default=0)
            found[name].append(Stretch(0, first, int(file["head_crc32"], 16), "the header"))
    return dict(found)


class CheckedBytes:
    """Checks each stretch of an open file the first time that any of its bytes is asked for; from any thread."""

    def __init__(self, descriptor: int, path: Path, stretches: Iterable[Stretch]) -> None:
        self._descriptor, self._path = descriptor, path
        self._stretches = sorted(stretches, key=lambda stretch: stretch.offset)
        self._offsets = [stretch.offset for stretch in self._stretches]
        self._locks = [Lock() for _ in self._stretches]
        self._checked = [False] * len(self._stretches)

    def check(self, offset: int, length: int) -> None:
        """Raises UserError where bytes `[offset, offset + length)` lie in a stretch that has changed."""
        at = max(0, bisect_right(self._offsets, offset) - 1)
        while at < len(self._stretches) and self._offsets[at] < offset + length:
            if not self._checked[at]:
                with self._locks[at]:
                    if not self._checked[at]:
                        self._check(self._stretches[at])
                        self._checked[at] = True
            at += 1

    def checks(self) -> list[Callable[[], None]]:
        """One for each stretch, to be called from any thread."""
        return [partial(self.check, stretch.offset, 1) for stretch in self._stretches]

    def _check(self, stretch: Stretch) -> None:
        buffer, found, done = memoryview(bytearray(min(stretch.length, _READ_BYTES))), 0, 0
        while done < stretch.length:
            part = buffer[: stretch.length - done]
            count = os.preadv(self._descriptor, [part], stretch.offset + done)
            if not count:
                break
            found = crc32(part[:count], found)
            done += count
        if done < stretch.length or found != stretch.crc32:
            raise UserError(
                f"{self._path}: is damaged: {stretch.what} is not as the conversion wrote it; copy the folder again, "
                "or convert again"
            )
