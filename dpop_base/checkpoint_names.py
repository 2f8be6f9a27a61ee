"""Names that a checkpoint's folder holds: the trainer writes and reads them, and so does the converter."""

from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"
ASSETS = "huggingface"  # where a Megatron checkpoint of ours keeps config.json and the tokenizer
METADATA = ".metadata"  # PyTorch's table of tensors and files, written after all of them

# Written after all tensors, `metadata.json` last of all: a checkpoint without them is incomplete.
LAST_WRITTEN = (METADATA, "metadata.json")

# Tensors that `parallel.pad_heads` adds rows or columns to, by the ends of their names.
HEAD_ROWS = ("linear_qkv.weight", "linear_qkv.bias", "linear_qkv_adapter.lora_B")
HEAD_COLUMNS = ("linear_proj.weight", "linear_proj_adapter.lora_A")


def iteration_name(iteration: int) -> str:
    """Returns the name of the folder in which the weights of an iteration are saved."""
    return f"iter_{iteration:07d}"


def missing_part(folder: Path) -> str | None:
    """Returns the name of a file without which a torch_dist folder is incomplete; None where it has both."""
    return next((name for name in LAST_WRITTEN if not (folder / name).is_file()), None)
