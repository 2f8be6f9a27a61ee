"""Converts a checkpoint of LoRA training to a folder that PEFT loads: the adapter alone."""

from dataclasses import replace
from pathlib import Path

from checkpoint_convert.conversion.conversion import Conversion
from checkpoint_convert.conversion.convert import convert
from checkpoint_convert.conversion.match import common_dtype
from checkpoint_convert.conversion.plan import OutputFile, cut
from checkpoint_convert.conversion.run import default_workers
from checkpoint_convert.locate import assets_folder, checkpoint_kind, iteration_folder
from checkpoint_convert.lora import adapter_config_file, holds_adapters, open_adapters, read_lora, write_adapter_config
from checkpoint_convert.megatron_to_hf import write_header, write_piece
from checkpoint_convert.peft_folder import ADAPTER_WEIGHTS
from checkpoint_convert.rules.adapters import peft_obstacle, to_peft
from checkpoint_convert.rules.families import RULES
from checkpoint_convert.tensors.source import FileState
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from dpop_base.architectures.read import read_architecture
from dpop_base.errors import UserError


def megatron_to_peft(
    source: Path,
    target: Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """
    Writes adapter_config.json and adapter_model.safetensors. `base` is what PEFT is to load the adapter onto (None:
    the model that it was trained from). `dtype` as for `megatron_to_hf`. Run again after an interruption, it
    continues. Raises UserError.
    """
    source, target = Path(source), Path(target)
    if checkpoint_kind(source) != "megatron":
        raise UserError(f"{source}: is a Hugging Face folder; megatron-to-hf wants a Megatron checkpoint")
    folder, assets = iteration_folder(source), assets_folder(source)
    a = read_architecture(assets)
    stored = TorchDistSource(folder)
    try:
        if not holds_adapters(stored):
            raise UserError(f"{folder}: holds whole weights and no LoRA adapters; leave --adapter out")
        lora = read_lora(folder, stored)
        if obstacle := peft_obstacle(a, lora.linears):
            raise UserError(f"{folder}: {obstacle}; leave --adapter out, for the merged model")
        adapters = open_adapters(folder, stored, a, lora)
        recipes = to_peft(RULES[a.family], a, lora.linears, lora.rank)
        pieces = [cut(r, common_dtype((s.source for s in r.segments), adapters.tensors, dtype)) for r in recipes]
        described = replace(lora, base=base or lora.base)
        options = "".join(f" --{name} {value}" for name, value in (("base", base), ("dtype", dtype)) if value)
        conversion = Conversion(
            command=f"checkpoint-convert megatron-to-hf --adapter {source} {target}{options}",
            source=adapters,
            states=[FileState.of(path) for path in (adapter_config_file(folder), *adapters.files())],
            target=target,
            files=[OutputFile(ADAPTER_WEIGHTS[0], tuple(piece for tensor in pieces for piece in tensor))],
            begin=write_header,
            write_piece=write_piece,
            finish=lambda journal: write_adapter_config(target, described, a),
        )
        convert(conversion, workers=workers or default_workers(), progress=progress)
    finally:
        stored.close()
