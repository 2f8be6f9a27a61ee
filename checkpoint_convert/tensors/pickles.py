"""
Pickles of checkpoints read with a list of what they may name, each name standing for plain data here: nothing in a
checkpoint is ever executed, and neither reading nor writing needs PyTorch, whose import takes longer than converting
a small model.
"""

import collections
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from checkpoint_convert.tensors.pickle_check import check_pickle
from dpop_base.dtypes import OUR_NAMES

STORAGES = {"FloatStorage": "fp32", "HalfStorage": "fp16", "BFloat16Storage": "bf16"}
OTHER_STORAGES = ("Long", "Int", "Short", "Char", "Byte", "Bool", "Double")
_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class StorageKey:
    """A persistent id of torch.save: which record of the archive holds a tensor's elements, and their dtype."""

    key: str
    dtype: str
    num_elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as torch.save's pickle describes it."""

    storage: StorageKey
    offset_elements: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        pairs = zip(self.shape, self.stride, row_major(self.shape), strict=True)
        return all(size == 1 or have == want for size, have, want in pairs)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= max(1, size)
    return tuple(strides)


def load_saved(data: bytes) -> Any:
    """The object in torch.save's `data.pkl`, its tensors as StoredTensor. Raises pickle.UnpicklingError."""
    return read_saved(io.BytesIO(data), {})


def read_saved(stream: BinaryIO, storages: "dict[str, StorageKey]") -> Any:
    """Reads a stream's next pickle as `load_saved`; notes the storages that it names. Raises UnpicklingError."""
    start = stream.tell()
    data = stream.read()
    end = check_pickle(data)
    stream.seek(start + end)
    return _loaded(_SavedTensors(io.BytesIO(data[:end]), storages))


def load_dcp_metadata(data: bytes) -> "Metadata":
    """The `.metadata` of torch.distributed.checkpoint, checked to be well formed. Raises pickle.UnpicklingError."""
    check_pickle(data)
    metadata = _loaded(_DcpMetadata(io.BytesIO(data)))
    if not isinstance(metadata, Metadata):
        raise pickle.UnpicklingError("it is not the metadata of a torch_dist checkpoint")
    Metadata.check(metadata)  # by its class: a pickle may give the object itself any attribute
    return metadata


def _loaded(unpickler: pickle.Unpickler) -> Any:
    try:
        return unpickler.load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything, with any text
        raise pickle.UnpicklingError(f"it is damaged ({type(error).__name__})") from None


def whole(value: Any) -> int:
    """A number that can be a size or a place in a file."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise pickle.UnpicklingError("it holds something else where a size belongs")
    return value


def sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > _MOST_DIMENSIONS:
        raise pickle.UnpicklingError("it holds something else where a shape belongs")
    return tuple(whole(size) for size in value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise pickle.UnpicklingError("it holds something else where a name belongs")
    return value


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, StorageKey) or len(sizes(shape)) != len(sizes(stride)):
        raise pickle.UnpicklingError("it describes a tensor wrongly")
    return StoredTensor(storage, whole(offset), sizes(shape), sizes(stride))


def _rebuild_parameter(tensor: Any, *_: Any) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise pickle.UnpicklingError("it describes a parameter wrongly")
    return tensor


class _SavedTensors(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, storages: dict[str, StorageKey]) -> None:
        super().__init__(stream)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild_tensor
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name.removesuffix("Storage") in OTHER_STORAGES:
            return name  # kept by name: refused only if such a tensor is asked for
        if (module, name) == ("torch", "Size"):
            return sizes
        raise pickle.UnpicklingError(f"it names {_shown(module, name)}, which weights have no use for")

    def persistent_load(self, pid: Any) -> StorageKey:
        # Before PyTorch 1.6 there is a sixth part: of which storage this is a view.
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or any(pid[5:]):
            raise pickle.UnpicklingError("it names elements wrongly")
        storage = StorageKey(_text(pid[2]), _text(pid[1]), whole(pid[4]))
        return self._storages.setdefault(storage.key, storage)


def _shown(module: str, name: str) -> str:
    """Names as a hostile file writes them, fit for a line."""
    return "".join(sign if sign.isprintable() else "?" for sign in f"{module}.{name}"[:120])


# What torch.distributed.checkpoint.metadata and .filesystem define under these names, as far as it is read here. The
# pickle fills them in as it likes; `Metadata.check` then finds out what it is not.


@dataclass
class Chunk:
    offsets: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass
class Properties:
    dtype: str = ""

    def __setstate__(self, state: Any) -> None:
        self.dtype = _text(state["dtype"] if isinstance(state, dict) else state[0])


@dataclass
class TensorEntry:
    properties: Properties = field(default_factory=Properties)
    size: tuple[int, ...] = ()
    chunks: list[Chunk] = field(default_factory=list)


class Anything:
    """Read past: of no use here."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass
class Index:
    fqn: str = ""
    offset: tuple[int, ...] | None = None
    index: int | None = field(default=None, compare=False)

    def __hash__(self) -> int:
        # The unpickler asks as it fills a table: what is no name and place may take for ever to hash.
        return hash((_text(self.fqn), self.offset if self.offset is None else sizes(self.offset)))


@dataclass
class StorageInfo:
    relative_path: str = ""
    offset: int = 0
    length: int = 0
    transform_descriptors: Any = None


@dataclass
class Metadata:
    state_dict_metadata: dict[str, Any] = field(default_factory=dict)
    planner_data: Any = None
    storage_data: Any = None
    storage_meta: Any = None
    version: Any = None

    def check(self) -> None:
        """Raises pickle.UnpicklingError for a field that is not what its class says, and for impossible sizes."""
        if not isinstance(self.state_dict_metadata, dict) or not isinstance(self.storage_data, dict):
            raise pickle.UnpicklingError("it is not the metadata of a torch_dist checkpoint")
        for name, entry in self.state_dict_metadata.items():
            _text(name)
            if isinstance(entry, TensorEntry):
                _check_entry(entry)
            elif not isinstance(entry, Anything):
                raise pickle.UnpicklingError("it describes a tensor wrongly")
        for place, info in self.storage_data.items():
            if not isinstance(place, Index) or not isinstance(info, StorageInfo):
                raise pickle.UnpicklingError("it says wrongly where tensors are stored")
            _text(info.relative_path), whole(info.offset), whole(info.length)


def _check_entry(entry: TensorEntry) -> None:
    if not isinstance(entry.properties, Properties) or not isinstance(entry.chunks, list | tuple):
        raise pickle.UnpicklingError("it describes a tensor wrongly")
    _text(entry.properties.dtype)
    entry.size = sizes(entry.size)
    for chunk in entry.chunks:
        if not isinstance(chunk, Chunk):
            raise pickle.UnpicklingError("it describes a tensor wrongly")
        chunk.offsets, chunk.sizes = sizes(chunk.offsets), sizes(chunk.sizes)
        if len(chunk.offsets) != len(entry.size) or len(chunk.sizes) != len(entry.size):
            raise pickle.UnpicklingError("it gives a tensor and its parts different numbers of dimensions")
        if any(first + count > size for first, count, size in zip(chunk.offsets, chunk.sizes, entry.size, strict=True)):
            raise pickle.UnpicklingError("it places a part of a tensor outside the tensor")


_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    (_METADATA, "Metadata"): Metadata,
    (_METADATA, "MetadataIndex"): Index,
    (_METADATA, "ChunkStorageMetadata"): Chunk,
    (_METADATA, "TensorStorageMetadata"): TensorEntry,
    (_METADATA, "BytesStorageMetadata"): Anything,
    (_METADATA, "TensorProperties"): Properties,
    (_METADATA, "StorageMeta"): Anything,
    (_METADATA, "_MEM_FORMAT_ENCODING"): Anything,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): StorageInfo,
    # Megatron keeps each rank's plan of the save, to skip planning the next one.
    (_PLANNER, "SavePlan"): Anything,
    (_PLANNER, "WriteItem"): Anything,
    (_PLANNER, "WriteItemType"): Anything,
    (_PLANNER, "TensorWriteData"): Anything,
    ("torch", "Size"): sizes,
    ("torch.serialization", "_get_layout"): Anything,
    ("pathlib", "PosixPath"): Anything,
    ("pathlib._local", "PosixPath"): Anything,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
_OTHER_DTYPES = "float64 int64 int32 int16 int8 uint8 bool float8_e4m3fn float8_e5m2".split()  # noqa: SIM905


class _DcpMetadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if module == "torch" and (name in OUR_NAMES or name in _OTHER_DTYPES):
            return OUR_NAMES.get(name, name)
        if module.startswith("megatron.core.dist_checkpointing.") and name in ("MCoreMetadata", "MCoreSavePlan"):
            return Anything  # Megatron 0.15 left these empty markers
        raise pickle.UnpicklingError(f"it names {_shown(module, name)}, which a checkpoint's metadata has no use for")
