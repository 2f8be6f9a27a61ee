"""
What Megatron keeps beside tensors (`common.pt`, or the object `common_state`), read as plain data: every class that its
pickle names, but for the few below, becomes an empty stand-in. Nothing is imported and nothing executed.
"""

import collections
import io
import os
import pickle
from typing import Any

from checkpoint_convert.tensors.archive import TorchArchive
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from dpop_base.errors import UserError

LEGACY_FILE = "common.pt"
COMMON_STATE = "common_state/shard_0_1"


class Inert:
    """Stands for an object of a class that is not read here: an enumeration, a dtype, a generator's state."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _Namespace(Inert):
    """Stands for argparse.Namespace, in which Megatron keeps its arguments."""

    def __setstate__(self, state: Any) -> None:
        self.values = dict(state) if isinstance(state, dict) else {}


class _CommonState(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch", "Size"):
            return tuple
        of = _Namespace if (module, name) in (("argparse", "Namespace"), ("types", "SimpleNamespace")) else Inert
        return type(name, (of,), {})  # a class of its own: what a pickle does to it, no other one sees

    def persistent_load(self, pid: Any) -> Any:
        return Inert()


def read_common_state(source: TorchDistSource) -> dict[str, Any]:
    """The state's top level; `args` in it is a dict. Empty where the checkpoint keeps none. Raises UserError."""
    content = _load(source)
    if isinstance(content, list) and len(content) == 1:  # Megatron wraps an object that it stores among tensors
        content = content[0]
    state = dict(content) if isinstance(content, dict) else {}
    if isinstance(state.get("args"), _Namespace):
        state["args"] = dict(getattr(state["args"], "values", {}))
    return state


def _load(source: TorchDistSource) -> Any:
    path, offset, length = source.folder / LEGACY_FILE, 0, None
    if not path.is_file():
        place = source.find_object(COMMON_STATE)
        if place is None:
            return {}
        path, offset, length = source.folder / place[0], place[1], place[2]
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); copy the checkpoint again") from None
    try:
        return TorchArchive(descriptor, path, offset, length, load=_load_pickle).content
    finally:
        os.close(descriptor)


def _load_pickle(data: bytes) -> Any:
    return _CommonState(io.BytesIO(data)).load()
