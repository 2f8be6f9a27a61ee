"""Converts a Megatron `torch_dist` checkpoint to a Hugging Face folder that `transformers` and vLLM load."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from checkpoint_convert.conversion.conversion import Conversion
from checkpoint_convert.conversion.convert import convert
from checkpoint_convert.conversion.match import check_all_used, common_dtype
from checkpoint_convert.conversion.plan import OutputFile, Piece, cut, group, main_dtype, target_file_bytes
from checkpoint_convert.conversion.run import default_workers
from checkpoint_convert.hf_to_megatron import check_source, plan_megatron
from checkpoint_convert.locate import assets_folder, checkpoint_kind, iteration_folder
from checkpoint_convert.lora import adapter_config_file, holds_adapters, open_adapters, read_lora
from checkpoint_convert.model_description import ModelDescription, describe_model
from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron, to_megatron
from checkpoint_convert.saved_arguments import check_arguments
from checkpoint_convert.tensors.huggingface import HuggingFaceSource
from checkpoint_convert.tensors.renamed import Renamed
from checkpoint_convert.tensors.safetensors_file import safetensors_header
from checkpoint_convert.tensors.source import FileState, TensorInfo, TensorSource
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from checkpoint_convert.tensors.unpadded import Unpadded
from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.read import read_architecture
from dpop_base.checksums import crc32
from dpop_base.errors import UserError
from dpop_base.files import write_json

SINGLE = "model.safetensors"


def megatron_to_hf(
    source: Path,
    target: Path,
    *,
    base: Path | None = None,
    config: Path | None = None,
    from_args: str | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """
    Writes safetensors (with an index where they are several), config.json, generation config and tokenizer files.
    `source` is a checkpoint folder with its tracker file, or one iteration's folder. One of LoRA training is merged
    into `base` (None: the model that it was trained from). config.json and the tokenizer are those of the folder
    `config` (None: of the checkpoint's own `huggingface/`); or config.json is made of the checkpoint's arguments, of
    the family `from_args`. `dtype` is "fp32", "bf16", "fp16", or None to keep each tensor's. Run again after an
    interruption, it continues. Raises UserError.
    """
    source, target = Path(source), Path(target)
    if checkpoint_kind(source) != "megatron":
        raise UserError(f"{source}: is a Hugging Face folder; megatron-to-hf wants a Megatron checkpoint")
    folder = iteration_folder(source)
    description = describe_model(source, config=config, from_args=from_args)
    architecture = description.architecture
    # A dtype to convert to is rounded to from the merged weights in fp32: once.
    tensors = open_megatron(folder, architecture, base=base, adapted_dtype="fp32" if dtype else None)
    given = (("base", base), ("config", config), ("from-args", from_args), ("dtype", dtype))
    options = "".join(f" --{name} {value}" for name, value in given if value)
    try:
        files = plan_huggingface(architecture, tensors.tensors, dtype)
        states = [FileState.of(path) for path in (*description.files(), *tensors.files())]
        conversion = Conversion(
            command=f"checkpoint-convert megatron-to-hf {source} {target}{options}",
            source=tensors,
            states=states,
            target=target,
            files=files,
            begin=write_header,
            write_piece=write_piece,
            finish=lambda journal: _finish(description, target, files),
        )
        convert(conversion, workers=workers or default_workers(), progress=progress)
    finally:
        tensors.close()


def open_megatron(
    folder: Path, a: Architecture, *, base: Path | None = None, adapted_dtype: str | None = None
) -> TensorSource:
    """
    The model's tensors in a torch_dist folder, at their true sizes. Where the folder holds LoRA adapters, they are
    those of `base` (None: of the model that was trained from) with the adapters added, in `adapted_dtype` (None: as
    the base stores them). Raises UserError unless all tensors are there.
    """
    source = TorchDistSource(folder)
    try:
        if holds_adapters(source):
            return _merge(folder, source, a, base, adapted_dtype)
        if base is not None:
            raise UserError(f"{folder}: holds whole weights and no LoRA adapters; leave --base out")
        expected = to_megatron(RULES[a.family], a)
        unpadded = Unpadded(source, expected, vocabulary_is_padded=check_arguments(source, a))
        check_all_used(folder, unpadded.tensors, expected, may_be_left=lambda name: False)
        if unpadded.dropped_rows:
            extra, stored = unpadded.dropped_rows, a.vocab_size + unpadded.dropped_rows
            print(
                f"{folder}: {extra} vocabulary rows beyond config.json's vocab_size of {a.vocab_size} are left out as "
                f"Megatron's padding, though not zero; set vocab_size to {stored} if they are tokens",
                file=sys.stderr,
            )
    except BaseException:
        source.close()
        raise
    return unpadded


def _merge(
    folder: Path, source: TorchDistSource, a: Architecture, base: Path | None, adapted_dtype: str | None
) -> TensorSource:
    from checkpoint_convert.tensors.merged import Merged  # computes: imports PyTorch

    lora = read_lora(folder, source)
    adapters = open_adapters(folder, source, a, lora)
    base = Path(lora.base) if base is None else base
    if not base.is_dir():
        raise UserError(f"{folder}: the base model {base} of these LoRA adapters is not here; name it with --base")
    if read_architecture(assets_folder(base)) != a:
        raise UserError(f"{base}: is another architecture than that of the LoRA adapters in {folder}; name their base")
    return Merged(
        _open_base(base, a),
        adapters,
        scale=lora.scale,
        scale_file=adapter_config_file(folder),
        adapted_dtype=adapted_dtype,
    )


def _open_base(base: Path, a: Architecture) -> TensorSource:
    """A checkpoint of either kind under Megatron's names."""
    if checkpoint_kind(base) == "megatron":
        return open_megatron(iteration_folder(base), a)
    source = HuggingFaceSource(base)
    try:
        check_source(base, source, a)
        plan_megatron(a, source.tensors, None)  # refuses dtypes that differ within one of Megatron's tensors
        return Renamed(source, to_megatron(RULES[a.family], a))
    except BaseException:
        source.close()
        raise


def plan_huggingface(a: Architecture, tensors: dict[str, TensorInfo], dtype: str | None) -> list[OutputFile]:
    """The safetensors files to write, tensors in the model's order."""
    recipes = from_megatron(RULES[a.family], a)
    pieces = [cut(recipe, common_dtype((s.source for s in recipe.segments), tensors, dtype)) for recipe in recipes]
    total = sum(piece.num_bytes for tensor in pieces for piece in tensor)
    groups = group(pieces, target_file_bytes(total))
    if len(groups) == 1:
        return [OutputFile(SINGLE, groups[0])]
    return [
        OutputFile(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups, start=1)
    ]


def write_header(stream: BinaryIO, file: OutputFile) -> int:
    """Begins a safetensors file."""
    header = safetensors_header(_tensors_of(file))
    stream.write(header)
    return crc32(header)


def _tensors_of(file: OutputFile) -> list[tuple[str, tuple[int, ...], str]]:
    rows: dict[str, int] = {}
    last: dict[str, Piece] = {}
    for piece in file.pieces:
        rows[piece.tensor] = rows.get(piece.tensor, 0) + piece.shape[0]
        last[piece.tensor] = piece
    return [(name, (rows[name], *piece.shape[1:]), piece.dtype) for name, piece in last.items()]


def write_piece(stream: BinaryIO, piece: Piece, parts: Iterable[memoryview]) -> int:
    value = 0
    for part in parts:
        stream.write(part)
        value = crc32(part, value)
    return value


def _finish(description: ModelDescription, target: Path, files: list[OutputFile]) -> None:
    if len(files) > 1:
        weight_map = {piece.tensor: file.name for file in files for piece in file.pieces}
        total = sum(file.num_bytes for file in files)
        write_json(
            target / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    description.write(target, main_dtype(files))
