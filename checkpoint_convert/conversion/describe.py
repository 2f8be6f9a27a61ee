"""What a conversion would write, told from `config.json` alone: no weights need to be there."""

import math
from pathlib import Path
from typing import Literal

from checkpoint_convert.conversion.plan import OutputFile
from checkpoint_convert.conversion.run import PART_BYTES
from checkpoint_convert.hf_to_megatron import plan_megatron
from checkpoint_convert.megatron_to_hf import plan_huggingface
from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron, to_megatron
from checkpoint_convert.tensors.source import TensorInfo
from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.read import architecture_of, dtype_of, read_config_file, read_fields
from dpop_base.errors import UserError


def describe(source: Path, to: Literal["megatron", "huggingface"], dtype: str | None) -> str:
    """
    The plan of a conversion of `source`, as text: a folder with a config.json, or such a file of any name. Raises
    UserError for what its config.json cannot be.
    """
    if not source.is_dir() and not source.is_file():
        raise UserError(f"{source}: no such folder or file; name a model's folder, or its config.json")
    fields = read_fields(source) if source.is_dir() else read_config_file(source)
    a, stored = architecture_of(fields), dtype_of(fields)
    if to == "megatron":
        read, written = from_megatron(RULES[a.family], a), to_megatron(RULES[a.family], a)
    else:
        read, written = to_megatron(RULES[a.family], a), from_megatron(RULES[a.family], a)
    tensors = {recipe.name: TensorInfo(recipe.shape, stored) for recipe in read}
    files = plan_megatron(a, tensors, dtype) if to == "megatron" else plan_huggingface(a, tensors, dtype)
    parameters = sum(math.prod(recipe.shape) for recipe in written)
    return "\n".join(
        [
            f"{a.family}: {a.num_layers} layers, hidden {a.hidden_size}, {a.num_attention_heads} heads, "
            f"{a.num_key_value_heads} key/value heads of {a.head_dim}, feed-forward {a.ffn_hidden_size}, "
            f"vocabulary {a.vocab_size}{_experts(a)}",
            f"{parameters:,} parameters, {stored} as config.json says" + (f", to {dtype}" if dtype else ""),
            f"reads {len(read)} tensors, {sum(info.num_bytes for info in tensors.values()):,} bytes",
            f"writes {len(written)} tensors, {sum(file.num_bytes for file in files):,} bytes, in {len(files)} files:",
            *(f"  {_line(file)}" for file in files),
            f"each worker holds {PART_BYTES >> 10} KiB of tensors (twice that where the dtype changes)",
        ]
    )


def _experts(a: Architecture) -> str:
    if a.experts is None:
        return ""
    dense = f", {len(a.experts.dense_layers)} layers without" if a.experts.dense_layers else ""
    shared = f", a shared one of {a.experts.shared_ffn_hidden_size}" if a.experts.shared_ffn_hidden_size else ""
    return f", {a.experts.count} experts of {a.experts.ffn_hidden_size}, {a.experts.per_token} a token{shared}{dense}"


def _line(file: OutputFile) -> str:
    names = list(dict.fromkeys(piece.tensor for piece in file.pieces))
    return f"{file.name}  {file.num_bytes:>15,} bytes  {names[0]} ... {names[-1]}"
