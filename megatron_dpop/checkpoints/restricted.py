"""The one door through which Megatron's checkpoints are loaded into a model: nothing in them is executed.

Megatron-Core's own loader, and PyTorch's below it, unpickle without restriction: `.metadata`, `common.pt`, and every
entry that is not a tensor. Here all of these are read by `checkpoint_convert.tensors`, which makes plain data of what
a checkpoint's pickles may hold and refuses the rest, and checks each tensor's elements by the CRC-32 that its archive
keeps. Megatron plans which parts of which tensors a rank reads, as ever.
"""

import io
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import serialization
from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner, Metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.futures import Future

from checkpoint_convert.tensors.archive import TorchArchive
from checkpoint_convert.tensors.common_state import COMMON_STATE
from checkpoint_convert.tensors.pickles import StoredTensor, TensorEntry
from checkpoint_convert.tensors.source import read_exactly
from checkpoint_convert.tensors.torch_dist import read_metadata
from checkpoint_convert.tensors.torch_dtypes import TORCH
from dpop_base.dtypes import TORCH_NAMES
from dpop_base.errors import UserError, first_line, printable
from dpop_base.files import is_file_name

_READERS = 2  # threads of a rank: one reads and checks a tensor while the other copies one to where it belongs
_STORAGE_DTYPES = {
    **TORCH,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "DoubleStorage": torch.float64,
}


def load(state: dict[str, Any], folder: Path, *, common: bool) -> dict[str, Any]:
    """
    Megatron's `dist_checkpointing.load` of what `state` asks for; every rank calls it. `common`: also what the
    checkpoint keeps beside tensors, which only a run's own checkpoints are asked for. Raises UserError where the
    checkpoint is damaged, or holds anything but tensors and plain data.
    """
    reader = _Reader(folder)
    with (
        patch.object(serialization, "load_common_state_dict", lambda _: reader.common_state() if common else {}),
        patch.object(torch_strategy, "_get_filesystem_reader", lambda *_, **__: reader),
        patch.object(torch_strategy, "MCoreLoadPlanner", partial(_Planner, folder)),
    ):
        try:
            return dist_checkpointing.load(state, str(folder), strict="assume_ok_unexpected")
        except CheckpointException as error:  # a BaseException, which wraps what a rank's reading raised
            for cause, _ in error.failures.values():
                raise cause if isinstance(cause, UserError) else _unreadable(folder, cause) from None
            raise _unreadable(folder, error) from None


def tensors_metadata(folder: Path) -> dict[str, Any]:
    """Megatron's `load_tensors_metadata`: by name, the tensors of a checkpoint without their elements."""
    try:
        with patch.object(torch_strategy, "_get_filesystem_reader", lambda *_, **__: _Reader(folder)):
            return dict(dist_checkpointing.load_tensors_metadata(str(folder)))
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: BaseException) -> UserError:
    text = first_line(error) if isinstance(error, Exception) else type(error).__name__
    return UserError(f"{folder}: cannot load the checkpoint ({text}); convert or copy it again")


class _Reader(FileSystemReader):
    """PyTorch's reader of a folder, its three ways of reading replaced."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder
        self._metadata = _as_torch(folder)
        self._of_thread = threading.local()
        self._placing = threading.Lock()

    def read_metadata(self) -> Metadata:
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        items: defaultdict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            items[self.storage_data[item.storage_index].relative_path].append(item)
        for file, asked in items.items():
            path = self._folder / file
            try:
                with open(path, "rb", buffering=0) as stream, ThreadPoolExecutor(_READERS) as pool:
                    list(pool.map(partial(self._read_item, path, stream.fileno(), planner), asked))
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}); copy the checkpoint again") from None
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_item(self, path: Path, descriptor: int, planner: LoadPlanner, item: ReadItem) -> None:
        place = self.storage_data[item.storage_index]
        if item.type == LoadItemType.BYTE_IO:
            data = io.BytesIO(os.pread(descriptor, place.length, place.offset))
            with self._placing:
                planner.load_bytes(item, data)
            return
        archive = TorchArchive(descriptor, path, place.offset, place.length)
        stored = archive.content
        if not isinstance(stored, StoredTensor):
            raise UserError(f"{path}: holds no tensor at byte {place.offset}; copy it again")
        values = narrow_tensor_by_index(
            _tensor(archive, stored, descriptor, self._space), item.storage_offsets, item.lengths
        )
        with self._placing:  # Megatron's planner keeps a tensor of another shape from the one call to the other
            target = planner.resolve_tensor(item).detach()
            if target.size() != values.size():
                raise UserError(f"{path}: the tensor at byte {place.offset} has another shape; copy it again")
            target.copy_(values)
            planner.commit_tensor(item, target)

    def _space(self, num_bytes: int) -> torch.Tensor:
        """Returns the same memory for each tensor of a thread: new pages take the kernel longer than filling them."""
        buffer = getattr(self._of_thread, "buffer", None)
        if buffer is None or buffer.numel() < num_bytes:
            buffer = self._of_thread.buffer = _bytes(num_bytes)
        return buffer[:num_bytes]

    def common_state(self) -> dict[str, Any]:
        """Plain data that a run saved beside its tensors."""
        path = self._folder / "common.pt"
        if path.exists():
            with open(path, "rb") as stream:
                state = _plain(stream.fileno(), path, 0, None)
        else:
            place = self._metadata.storage_data.get(MetadataIndex(COMMON_STATE))
            if place is None:
                raise UserError(f"{self._folder}: has no {COMMON_STATE}, so no run can go on from it; copy it again")
            path = self._folder / place.relative_path
            with open(path, "rb") as stream:
                state = _plain(stream.fileno(), path, place.offset, place.length)
                state = state[0] if isinstance(state, list) and state else state
        if not isinstance(state, dict):
            raise UserError(f"{path}: holds no table of a run's state; copy it again")
        return state


class _Planner(torch_strategy.MCoreLoadPlanner):
    """Megatron's, which PyTorch has unpickle what is no tensor."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self._folder = folder

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        data = value.getbuffer()
        descriptor = os.memfd_create("entry")
        try:
            os.write(descriptor, data)
            self.state_dict[name] = _plain(descriptor, self._folder / printable(name), 0, len(data))
        finally:
            os.close(descriptor)


def _plain(descriptor: int, path: Path, offset: int, length: int | None) -> Any:
    """What torch.save wrote, of tensors and plain data."""
    archive = TorchArchive(descriptor, path, offset, length)

    def revived(value: Any) -> Any:
        if isinstance(value, StoredTensor):
            return _tensor(archive, value, descriptor)
        if isinstance(value, dict):
            return type(value)((name, revived(part)) for name, part in value.items())
        if isinstance(value, list | tuple):
            return type(value)(revived(part) for part in value)
        return value

    try:
        return revived(archive.content)
    except RecursionError:
        raise UserError(f"{path}: nests deeper than any checkpoint; copy it again") from None


def _bytes(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def _tensor(
    archive: TorchArchive, stored: StoredTensor, descriptor: int, space: Callable[[int], torch.Tensor] = _bytes
) -> torch.Tensor:
    """Returns a stored tensor in the memory that `space` gives for a number of bytes."""
    dtype = _STORAGE_DTYPES.get(stored.storage.dtype)
    start, num_bytes = archive.elements(stored)
    if dtype is None or num_bytes % dtype.itemsize:
        raise UserError(f"{archive.path}: holds a tensor of an unknown kind at byte {start}; save it again")
    data = space(num_bytes)
    view = memoryview(data.numpy())
    read_exactly(descriptor, archive.path, start, view)
    archive.check_elements(stored, view)
    elements = data.view(dtype)
    last = sum((size - 1) * stride for size, stride in zip(stored.shape, stored.stride, strict=True))
    if 0 not in stored.shape and stored.offset_elements + last >= elements.numel():
        raise UserError(f"{archive.path}: holds a tensor at byte {start} that is larger than its bytes; copy it again")
    return elements.as_strided(stored.shape, stored.stride, stored.offset_elements)


def _as_torch(folder: Path) -> Metadata:
    """PyTorch's description of a checkpoint, made from checked plain data."""
    found = read_metadata(folder / ".metadata")
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    for name, entry in found.state_dict_metadata.items():
        if not isinstance(entry, TensorEntry):
            entries[name] = BytesStorageMetadata()
            continue
        dtype = getattr(torch, TORCH_NAMES.get(entry.properties.dtype, entry.properties.dtype), None)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"{folder}: {printable(name)} has a dtype that is none; copy the checkpoint again")
        chunks = [ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in entry.chunks]
        entries[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(entry.size), chunks)
    places = {}
    for index, info in found.storage_data.items():
        if not is_file_name(info.relative_path) or info.transform_descriptors:
            raise UserError(
                f"{folder}: does not say plainly where {printable(index.fqn)} is stored; save the checkpoint again"
            )
        offset = None if index.offset is None else torch.Size(index.offset)
        places[MetadataIndex(index.fqn, offset)] = _StorageInfo(info.relative_path, info.offset, info.length)
    return Metadata(entries, storage_data=places, storage_meta=StorageMeta())
