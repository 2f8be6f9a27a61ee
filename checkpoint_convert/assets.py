"""Everything of a model but its weights: config, generation config, tokenizer, licence, remote code."""

import json
from pathlib import Path

from checkpoint_convert.conversion.journal import JOURNAL, MANIFEST
from checkpoint_convert.files import write_bytes, write_json, write_text
from checkpoint_convert.tensors.dtypes import TO_CONFIG

WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".index.json",
)


def copy_assets(source: Path, target: Path, dtype: str) -> None:
    """Copies the files of `source` that are not weights; `config.json`, written last, announces `dtype`.

    Files that are there already with the same content are left alone.
    """
    for path in sorted(source.iterdir()):
        own = path.name in (JOURNAL, MANIFEST, "config.json") or path.name.startswith(".")
        if path.is_file() and not own and not path.name.endswith(WEIGHT_SUFFIXES):
            write_bytes(target / path.name, path.read_bytes())
    raw = (source / "config.json").read_text(encoding="utf-8")
    config = json.loads(raw)
    name = "dtype" if "dtype" in config else "torch_dtype"
    if config.get("model_type") == "qwen":  # Qwen1's own code decides by these flags
        flags = {"bf16": dtype == "bf16", "fp16": dtype == "fp16", "fp32": dtype == "fp32"}
        config.update({key: value for key, value in flags.items() if key in config and config[key] != value})
    if config.get(name) != TO_CONFIG[dtype]:
        config[name] = TO_CONFIG[dtype]
    if config == json.loads(raw):
        write_text(target / "config.json", raw)
    else:
        write_json(target / "config.json", config)
