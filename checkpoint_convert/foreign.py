"""Checkpoints in formats that are not read here: told from their files, and named with the way out."""

import json
from pathlib import Path

_RESAVE = "load it where it was saved and save it again with --ckpt-format torch_dist"

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def foreign_format(folder: Path) -> str | None:
    """What a folder holds that cannot be read here, and what to do; None where no such format is recognised."""
    if (folder / "config.json").is_file() and any((folder / name).is_file() for name in _WEIGHTS):
        return None  # whatever a trainer left beside them
    if any(folder.glob("mp_rank_*/model_optim_rng.pt")) or any(folder.glob("mp_rank_*/model_rng.pt")):
        return (
            "is a checkpoint in Megatron-LM's legacy torch format (mp_rank_*/model_optim_rng.pt); load it in "
            "Megatron-LM at its own layout with --ckpt-convert-format torch_dist --ckpt-convert-save FOLDER"
        )
    if any(folder.glob("*_model_states.pt")) or any(folder.glob("global_step*/*_model_states.pt")):
        return "is a DeepSpeed checkpoint; run the zero_to_fp32.py that lies in it, and convert its Hugging Face folder"
    if (folder / "model_config.yaml").is_file() and (folder / "model_weights").is_dir():
        return "is a NeMo 1 checkpoint; export it to a Hugging Face folder with NeMo, and convert that"
    if (folder / ".metadata").is_file():
        return _of_torch_dcp(folder)
    if (folder / "config.json").is_file():
        return None
    for pattern, what in (
        ("consolidated.*", "holds weights in their author's own format (consolidated.*)"),
        ("*.gguf", "holds a GGUF file"),
        ("*.nemo", "holds a .nemo archive"),
        ("adapter_config.json", "is a PEFT adapter without a config.json"),
    ):
        if any(folder.glob(pattern)):
            if what.endswith("config.json"):
                return f"{what}; name its base model with --base in hf-to-megatron"
            return f"{what}; take the model's Hugging Face folder (config.json and safetensors)"
    return None


def _of_torch_dcp(folder: Path) -> str | None:
    """A folder of torch.distributed.checkpoint that is not Megatron's torch_dist."""
    path = folder / "metadata.json"
    if not path.is_file():
        return (
            "has no metadata.json of Megatron's, so this checkpoint is incomplete, or in the format torch_dcp or "
            f"fsdp_dtensor; copy metadata.json too if there is one, else {_RESAVE}"
        )
    try:
        backend = json.loads(path.read_text(encoding="utf-8"))["sharded_backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return "has a damaged metadata.json; copy the checkpoint again"
    if backend == "torch_dist":
        return None
    if backend == "fsdp_dtensor":
        return (
            f"is a checkpoint of Megatron-FSDP (fsdp_dtensor), which names and cuts tensors in its own way; {_RESAVE}"
        )
    return f"is a checkpoint in the format {str(backend)[:40]!r}; {_RESAVE}"
