"""Checkpoints, adapters and tokenizers that try to run code when they are read, as an attacker would ship them."""

import io
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from checkpoint_convert.manifest import MANIFEST

COMMON = "common_state/shard_0_1"


class Payload:
    """Touches the canary when it is unpickled, in one of several ways."""

    def __init__(self, canary: Path, way: int = 0) -> None:
        self.canary, self.way = canary, way

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        path = str(self.canary)
        ways: list[tuple[Any, tuple[Any, ...]]] = [
            (os.system, (f"touch {path}",)),
            (exec, (f"open({path!r}, 'w').close()",)),
            (subprocess.Popen, (["touch", path],)),
            (open, (path, "w")),
        ]
        return ways[self.way % len(ways)]


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def plant(folder: Path, key: str, data: bytes) -> None:
    """Appends an entry to a torch_dist folder's tensors and has its metadata name it."""
    with (folder / "__0_0.distcp").open("ab") as file:
        place = _StorageInfo("__0_0.distcp", file.tell(), len(data))
        file.write(data)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.state_dict_metadata[key] = BytesStorageMetadata()
    metadata.storage_data[MetadataIndex(key)] = place
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def replace_tensor(folder: Path, key: str, data: bytes) -> None:
    """Puts an archive of other content where a tensor's first part is said to be."""
    with (folder / "__0_0.distcp").open("ab") as file:
        place = _StorageInfo("__0_0.distcp", file.tell(), len(data))
        file.write(data)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    index = next(index for index in metadata.storage_data if index.fqn == key)
    metadata.storage_data[index] = place
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def unpickled_beside_tensors(checkpoint: Path, canary: Path) -> None:
    """What Megatron-Core and PyTorch would unpickle without restriction on the way to a model's weights."""
    folder = _iteration(checkpoint)
    plant(folder, COMMON, saved([Payload(canary)]))
    for layer in range(4):
        plant(folder, f"decoder.layers.mlp.linear_fc1._extra_state/shard_{layer}_4", saved([Payload(canary, 1)]))
    plant(folder, "rng_state/shard_0.0_1.1", saved([Payload(canary, 2)]))


def unpickled_in_place_of_a_common_file(checkpoint: Path, canary: Path) -> None:
    """Where there is no `common.pt`, Megatron-Core reads what it would hold from an entry among the tensors."""
    unpickled_beside_tensors(checkpoint, canary)
    (_iteration(checkpoint) / "common.pt").unlink()


def common_file(checkpoint: Path, canary: Path) -> None:
    torch.save({"args": Payload(canary)}, _iteration(checkpoint) / "common.pt")


def metadata_file(checkpoint: Path, canary: Path) -> None:
    folder = _iteration(checkpoint)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = Payload(canary, 1)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def tensor(checkpoint: Path, canary: Path) -> None:
    replace_tensor(_iteration(checkpoint), "decoder.final_layernorm.weight", saved(Payload(canary)))


def common_of_a_run(checkpoints: Path, canary: Path) -> None:
    plant(_iteration(checkpoints), COMMON, saved([{"optimizer": Payload(canary), "iteration": 2}]))


def optimizer_of_a_run(checkpoints: Path, canary: Path) -> None:
    replace_tensor(
        _iteration(checkpoints), "optimizer.state.exp_avg.decoder.final_layernorm.weight", saved(Payload(canary, 3))
    )


def bin_weights(folder: Path, canary: Path) -> None:
    """In place of a Hugging Face folder's safetensors."""
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload(canary, 2)}, folder / "pytorch_model.bin")


def remote_code(folder: Path, canary: Path) -> None:
    """A tokenizer whose class is a file of the folder."""
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Tokenizer: pass\n")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}
    path.write_text(json.dumps(config))


def _iteration(checkpoint: Path) -> Path:
    (checkpoint / MANIFEST).unlink(missing_ok=True)  # which would give the change away
    tracked = (checkpoint / "latest_checkpointed_iteration.txt").read_text().strip()
    folder = checkpoint / (f"iter_{int(tracked):07d}" if tracked.isdecimal() else tracked)
    (folder / "checksums.json").unlink(missing_ok=True)
    return folder


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
