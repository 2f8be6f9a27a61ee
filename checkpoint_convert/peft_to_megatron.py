"""Merges a PEFT folder with a LoRA adapter into its base, as a Megatron checkpoint."""

from pathlib import Path

from checkpoint_convert.assets import copy_assets, copy_tokenizer
from checkpoint_convert.conversion.run import default_workers
from checkpoint_convert.hf_to_megatron import write_megatron
from checkpoint_convert.locate import assets_folder
from checkpoint_convert.lora import ADAPTER_CONFIG
from checkpoint_convert.peft_folder import ADAPTER_WEIGHTS, base_of, is_peft_folder, match_adapter
from checkpoint_convert.tensors.huggingface import HuggingFaceSource
from checkpoint_convert.tensors.peft_merged import PeftMerged
from checkpoint_convert.verify import open_checkpoint
from dpop_base.architectures.read import read_architecture
from dpop_base.errors import UserError


def peft_to_megatron(
    source: Path,
    target: Path,
    *,
    base: Path | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """
    Merges the adapter into `base` (None: the folder that it names), a checkpoint of either kind, and writes what
    `hf_to_megatron` would of the merged model, with the adapter's tokenizer where it has one. Merging is in fp32 and
    rounded once, to `dtype` or to what the base stores. Raises UserError.
    """
    source, target = Path(source), Path(target)
    if not is_peft_folder(source):
        raise UserError(f"{source}: has no {ADAPTER_CONFIG} with weights beside it; name a PEFT folder")
    base = base_of(source, base)
    assets = assets_folder(base)
    a = read_architecture(assets)
    weights, adapter = open_checkpoint(base), HuggingFaceSource(source, names=ADAPTER_WEIGHTS)

    def copy(folder: Path, stored: str) -> None:
        copy_assets(assets, folder, stored)
        copy_tokenizer(source, folder)

    try:
        adapted, replaced = match_adapter(source, adapter, weights)
        merged = PeftMerged(
            weights,
            adapter,
            adapted=adapted,
            replaced=replaced,
            config_file=source / ADAPTER_CONFIG,
            adapted_dtype="fp32" if dtype else None,
        )
        options = "".join(f" --{name} {value}" for name, value in (("base", base), ("dtype", dtype)) if value)
        write_megatron(
            merged,
            a,
            target,
            command=f"checkpoint-convert hf-to-megatron {source} {target}{options}",
            config=assets / "config.json",
            copy=copy,
            dtype=dtype,
            workers=workers or default_workers(),
            progress=progress,
        )
    finally:
        weights.close()
        adapter.close()
