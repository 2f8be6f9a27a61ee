"""Converts a Hugging Face folder to a Megatron `torch_dist` checkpoint, without building the model."""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from checkpoint_convert.assets import copy_assets, left_behind
from checkpoint_convert.conversion.conversion import Conversion
from checkpoint_convert.conversion.convert import convert
from checkpoint_convert.conversion.journal import Journal
from checkpoint_convert.conversion.match import check_all_used, common_dtype, some_of
from checkpoint_convert.conversion.plan import OutputFile, Piece, cut, group, main_dtype, target_file_bytes
from checkpoint_convert.conversion.run import default_workers
from checkpoint_convert.fused_experts import split_fused_experts
from checkpoint_convert.locate import checkpoint_kind
from checkpoint_convert.rules.families import RECOMPUTED, RULES
from checkpoint_convert.rules.rule import TensorRecipe, from_megatron, to_megatron
from checkpoint_convert.tensors.archive import write_tensor_archive
from checkpoint_convert.tensors.huggingface import HuggingFaceSource
from checkpoint_convert.tensors.source import FileState, TensorInfo, TensorSource
from checkpoint_convert.tensors.stacked import stacked_key
from checkpoint_convert.tensors.stretches import same_elements
from checkpoint_convert.tensors.torch_dist_write import StoredChunk, write_checkpoint_files
from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.read import read_architecture
from dpop_base.checkpoint_names import ASSETS, TRACKER
from dpop_base.errors import UserError
from dpop_base.files import write_text

ITERATION = "release"  # Megatron's name for weights that training has not begun from: it loads no optimizer with them


def hf_to_megatron(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """
    Writes `target/release/` (torch_dist), `target/huggingface/` (config and tokenizer) and the tracker file.
    `dtype` is "fp32", "bf16", "fp16", or None to keep each tensor's. Run again after an interruption, it continues.
    Raises UserError for a source that is not exactly what its config.json says, and for a full or read-only disk.
    """
    source, target = Path(source), Path(target)
    workers = default_workers() if workers is None else workers
    if checkpoint_kind(source) != "huggingface":
        raise UserError(f"{source}: is a Megatron checkpoint; hf-to-megatron wants a Hugging Face folder")
    architecture = read_architecture(source)
    tensors = HuggingFaceSource(source)
    try:
        check_source(source, tensors, architecture)
        write_megatron(
            tensors,
            architecture,
            target,
            command=f"checkpoint-convert hf-to-megatron {source} {target}" + (f" --dtype {dtype}" if dtype else ""),
            config=source / "config.json",
            copy=lambda folder, stored: copy_assets(source, folder, stored),
            dtype=dtype,
            workers=workers,
            progress=progress,
        )
        if progress and (left := left_behind(source, tensors.files())):
            print(f"{source}: neither converted nor copied: {some_of(left)}", file=sys.stderr)
    finally:
        tensors.close()


def write_megatron(
    source: TensorSource,
    a: Architecture,
    target: Path,
    *,
    command: str,
    config: Path,
    copy: Callable[[Path, str], None],
    dtype: str | None,
    workers: int,
    progress: bool,
) -> None:
    """
    Writes a checkpoint of a source that has the family's names. `config` is the model's config.json, and `copy` puts
    it and the tokenizer into a folder, announcing a dtype.
    """
    files = plan_megatron(a, source.tensors, dtype)
    conversion = Conversion(
        command=command,
        source=source,
        states=[FileState.of(path) for path in (config, *source.files())],
        target=target,
        files=files,
        begin=lambda stream, file: None,
        write_piece=partial(_write_piece, a),
        finish=lambda journal: _finish(target, a, files, journal, copy),
    )
    convert(conversion, workers=workers, progress=progress)


def check_source(folder: Path, source: HuggingFaceSource, a: Architecture) -> None:
    """Raises UserError unless each tensor has exactly one place in the architecture, and each place a tensor."""
    split_fused_experts(source, a)
    expected = from_megatron(RULES[a.family], a)
    embedding = RULES[a.family][0].family[0]
    if a.tied_embeddings and embedding not in source.tensors and "lm_head.weight" in source.tensors:
        source.rename("lm_head.weight", embedding)  # transformers ties either to the one that is there
    copies = {"lm_head.weight"} if a.tied_embeddings else set()

    def may_be_left(name: str) -> bool:
        return name in copies or RECOMPUTED.fullmatch(name) is not None

    check_all_used(folder, source.tensors, expected, may_be_left=may_be_left)
    both = a.tied_embeddings and "lm_head.weight" in source.tensors
    if both and not same_elements(source, "lm_head.weight", embedding):
        raise UserError(
            f"{folder}: lm_head.weight differs from {embedding} though config.json ties them; "
            "set tie_word_embeddings to false if the weights are right"
        )


def plan_megatron(a: Architecture, tensors: dict[str, TensorInfo], dtype: str | None) -> list[OutputFile]:
    """The files to write, relative to the target folder. Raises UserError where stacked tensors differ in dtype."""
    recipes = to_megatron(RULES[a.family], a)
    keys = [stacked_key(recipe.name, layers_are_alike=a.layers_are_alike)[0] for recipe in recipes]
    dtypes = _dtype_per_key(keys, recipes, tensors, dtype)
    pieces = [cut(recipe, dtypes[key]) for recipe, key in zip(recipes, keys, strict=True)]
    total = sum(piece.num_bytes for tensor in pieces for piece in tensor)
    groups = group(pieces, target_file_bytes(total))
    return [OutputFile(f"{ITERATION}/__0_{i}.distcp", pieces) for i, pieces in enumerate(groups)]


def _dtype_per_key(
    keys: list[str], recipes: list[TensorRecipe], tensors: dict[str, TensorInfo], dtype: str | None
) -> dict[str, str]:
    sources: dict[str, list[str]] = {}
    for key, recipe in zip(keys, recipes, strict=True):
        sources.setdefault(key, []).extend(s.source for s in recipe.segments)
    return {key: common_dtype(names, tensors, dtype) for key, names in sources.items()}


def _write_piece(a: Architecture, stream: BinaryIO, piece: Piece, parts: Iterable[memoryview]) -> int:
    """Writes one piece. On disk it has one more axis, of size 1, for each that stacks its key."""
    place = stacked_key(piece.tensor, layers_are_alike=a.layers_are_alike)[1]
    return write_tensor_archive(stream, (*[1] * len(place), *piece.shape), piece.dtype, parts)


def _finish(
    target: Path, a: Architecture, files: list[OutputFile], journal: Journal, copy: Callable[[Path, str], None]
) -> None:
    chunks = [
        StoredChunk(
            tensor=piece.tensor,
            dtype=piece.dtype,
            first_row=piece.first_row,
            shape=piece.shape,
            file=Path(file.name).name,
            offset=place.offset,
            length=place.length,
        )
        for file in files
        for piece, place in zip(file.pieces, journal.written[file.name].pieces, strict=True)
    ]
    write_checkpoint_files(target / ITERATION, a, chunks)
    copy(target / ASSETS, main_dtype(files))
    write_text(target / TRACKER, ITERATION + "\n")
