"""
Files that torch.save wrote before PyTorch 1.6 (and still writes when asked to): a few pickles, then each storage's
length and bytes. Read with the same list of names as archives: nothing is executed.
"""

import io
import os
import pickle
from pathlib import Path

from checkpoint_convert.tensors.archive import MAX_PICKLE_BYTES, FileSlice
from checkpoint_convert.tensors.dtypes import ITEM_BYTES
from checkpoint_convert.tensors.pickles import StorageKey, StoredTensor, read_saved
from dpop_base.errors import UserError, first_line

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_BEGINS = pickle.dumps(MAGIC, protocol=2)
# Bytes of an element of torch's other storages, which are skipped.
_OTHER = {"LongStorage": 8, "DoubleStorage": 8, "IntStorage": 4, "ShortStorage": 2}


def is_legacy(descriptor: int) -> bool:
    return os.pread(descriptor, len(_BEGINS), 0) == _BEGINS


class LegacyArchive:
    """A whole file, read as `TorchArchive` does. Raises UserError where it is damaged, or is not just tensors."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.path = path
        self._descriptor = descriptor
        self._file_bytes = os.fstat(descriptor).st_size
        stream = io.BufferedReader(FileSlice(descriptor, 0, min(self._file_bytes, MAX_PICKLE_BYTES)))
        seen: dict[str, StorageKey] = {}
        try:
            header = [read_saved(stream, seen) for _ in range(3)]
            if header[0] != MAGIC or header[1] != PROTOCOL or header[2].get("little_endian") is not True:
                raise ValueError("its header is of another format")
            self.content = read_saved(stream, seen)
            keys = read_saved(stream, seen)
            self._storages = self._locate(stream.tell(), keys, seen)
        except pickle.UnpicklingError as error:
            raise UserError(f"{path}: refused, {error}; convert it to safetensors where you trust it") from None
        except Exception as error:  # a damaged pickle raises nearly anything
            raise UserError(f"{path}: is not a file of torch.save ({first_line(error)}); download it again") from None

    def elements(self, tensor: StoredTensor) -> tuple[int, int]:
        """Byte offset in the file of the storage's first element, and the storage's bytes."""
        return self._storages[tensor.storage.key]

    def _locate(self, position: int, keys: list[str], seen: dict[str, StorageKey]) -> dict[str, tuple[int, int]]:
        places = {}
        for key in keys:
            storage = seen[key]
            width = ITEM_BYTES.get(storage.dtype) or _OTHER.get(storage.dtype, 1)
            length = os.pread(self._descriptor, 8, position)
            num_bytes = int.from_bytes(length, "little") * width
            if len(length) < 8 or int.from_bytes(length, "little") != storage.num_elements:
                raise ValueError(f"the length of a tensor at byte {position} is damaged")
            if position + 8 + num_bytes > self._file_bytes:
                raise ValueError(f"it ends before the {num_bytes} bytes of a tensor at byte {position}")
            places[key] = (position + 8, num_bytes)
            position += 8 + num_bytes
        return places
