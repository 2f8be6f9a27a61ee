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

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
STORAGES = {"FloatStorage": "fp32", "HalfStorage": "fp16", "BFloat16Storage": "bf16"}
OTHER_STORAGES = ("Long", "Int", "Short", "Char", "Byte", "Bool", "Double")


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
    """As `load_saved`, of the next pickle in a stream; notes the storages that it names. Raises UnpicklingError."""
    return _SavedTensors(stream, storages).load()


def load_dcp_metadata(data: bytes) -> "Metadata":
    """The `.metadata` of torch.distributed.checkpoint. Raises pickle.UnpicklingError."""
    metadata = _DcpMetadata(io.BytesIO(data)).load()
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise pickle.UnpicklingError("it is not the metadata of a torch_dist checkpoint")
    return metadata


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
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
            return tuple
        raise pickle.UnpicklingError(f"it names {module}.{name}, which weights have no use for")

    def persistent_load(self, pid: Any) -> StorageKey:
        kind, dtype, key, _, num_elements, *view = pid  # before PyTorch 1.6, also of which storage this is a view
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError(f"unknown persistent id {kind!r}")
        storage = StorageKey(str(key), str(dtype), int(num_elements))
        return self._storages.setdefault(storage.key, storage)


# What torch.distributed.checkpoint.metadata and .filesystem define under these names, as far as it is read here.


@dataclass
class Chunk:
    offsets: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass
class Properties:
    dtype: str = ""

    def __setstate__(self, state: Any) -> None:
        self.dtype = state["dtype"] if isinstance(state, dict) else state[0]


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
        return hash((self.fqn, self.offset))


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
    ("torch", "Size"): tuple,
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
        if module == "torch" and (name in DTYPES or name in _OTHER_DTYPES):
            return DTYPES.get(name, name)
        if module.startswith("megatron.core.dist_checkpointing.") and name in ("MCoreMetadata", "MCoreSavePlan"):
            return Anything  # Megatron 0.15 left these empty markers
        raise pickle.UnpicklingError(f"it names {module}.{name}, which a checkpoint's metadata has no use for")
