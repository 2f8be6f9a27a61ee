"""Everything of a model but its weights: config, generation config, tokenizer, licence, remote code."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from checkpoint_convert.conversion.journal import JOURNAL
from checkpoint_convert.manifest import MANIFEST
from dpop_base.dtypes import TORCH_NAMES
from dpop_base.errors import UserError
from dpop_base.files import write_bytes, write_json, write_text

CHAT_TEMPLATES = "additional_chat_templates"  # transformers' folder of templates beside the main one
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model"),
    *("*.tiktoken", "chat_template*", f"{CHAT_TEMPLATES}/*.jinja"),
)
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
    """
    Copies the files of `source` that are not weights; `config.json`, written last, announces `dtype`. Files that are
    there already with the same content are left alone.
    """
    copy_files(source, target)
    raw = (source / "config.json").read_text(encoding="utf-8")
    config = json.loads(raw)
    announced = announcing(config, dtype)
    if announced == config:
        write_text(target / "config.json", raw)
    else:
        write_json(target / "config.json", announced)


def copy_files(source: Path, target: Path) -> None:
    """Copies what is neither weights nor config.json, and the chat templates beside the main one."""
    for path in sorted(source.iterdir()):
        own = path.name in (JOURNAL, MANIFEST, "config.json") or path.name.startswith(".")
        if path.is_file() and not own and not path.name.endswith(WEIGHT_SUFFIXES):
            write_bytes(target / path.name, read_asset(path, source))
    for path in sorted((source / CHAT_TEMPLATES).glob("*.jinja")):
        write_bytes(target / CHAT_TEMPLATES / path.name, read_asset(path, source))


def left_behind(source: Path, converted: Iterable[Path]) -> list[str]:
    """
    Names what is neither copied nor among the `converted` files of weights; folders with a slash. Hidden ones and the
    indexes of weights are not named.
    """
    known = {CHAT_TEMPLATES, *(path.name for path in converted)}
    return [
        f"{path.name}/" if path.is_dir() else path.name
        for path in sorted(source.iterdir())
        if path.name not in known
        and not path.name.startswith(".")
        and (path.is_dir() or (path.name.endswith(WEIGHT_SUFFIXES) and not path.name.endswith(".index.json")))
    ]


def read_asset(path: Path, folder: Path) -> bytes:
    """
    A file of a model's folder. Raises UserError where it is a link out of that folder, whose target (somebody's
    password, say) would be copied into what is made of the model. Links within it are followed, and those of the hub's
    cache, whose snapshots link to the blobs beside them.
    """
    inside = folder.resolve()
    roots = [inside, inside.parent.parent / "blobs"] if inside.parent.name == "snapshots" else [inside]
    found = path.resolve()
    if not any(found.is_relative_to(root) for root in roots):
        raise UserError(
            f"{path}: is a link to {found}, outside the model's folder; put the file itself there, or remove the link"
        )
    return path.read_bytes()


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer of an adapter's folder, where it has one, over that of its base."""
    if (source / "tokenizer_config.json").is_file():
        for pattern in TOKENIZER_FILES:
            for path in sorted(source.glob(pattern)):
                write_bytes(target / path.relative_to(source), read_asset(path, source))


def announcing(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """
    `config` as we write it: it announces `dtype`, and transformers 4's `torch_dtype`, `rope_theta`, `rope_scaling`,
    `rope_local_base_freq`, `partial_rotary_factor` and a Qwen3's `num_experts` stand beside transformers 5's `dtype`,
    `rope_parameters` and `num_local_experts`, for the many readers that know the former alone.
    """
    config = dict(config)
    for name in ("dtype", "torch_dtype") if "dtype" in config else ("torch_dtype",):
        config[name] = TORCH_NAMES[dtype]
    if config.get("model_type") == "qwen":  # Qwen1's own code decides by these flags
        flags = {"bf16": dtype == "bf16", "fp16": dtype == "fp16", "fp32": dtype == "fp32"}
        config.update({key: value for key, value in flags.items() if key in config and config[key] != value})
    if config.get("model_type") == "qwen3_moe" and "num_local_experts" in config:  # transformers 5's name for it
        config["num_experts"] = config["num_local_experts"]
    rope = config.get("rope_parameters")
    return config | (_in_transformers_4(rope) if isinstance(rope, dict) else {})


def _in_transformers_4(rope: dict[str, Any]) -> dict[str, Any]:
    """What transformers 4 calls the parts of `rope_parameters`; a Gemma's have a table for each kind of layer."""
    full, sliding = rope.get("full_attention", rope), rope.get("sliding_attention")
    found = {}
    if isinstance(sliding, dict) and isinstance(sliding.get("rope_theta"), int | float):
        found["rope_local_base_freq"] = sliding["rope_theta"]
    if isinstance(full, dict) and isinstance(full.get("rope_theta"), int | float):
        beside = {name: full[name] for name in ("rope_theta", "partial_rotary_factor") if full.get(name) is not None}
        found |= beside
        if full.get("rope_type", "default") != "default":
            found["rope_scaling"] = {name: value for name, value in full.items() if name not in beside}
    return found
