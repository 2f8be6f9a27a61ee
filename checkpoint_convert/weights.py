"""Whether a checkpoint's weights are all there, told from headers and file sizes: seconds for any size of model."""

from pathlib import Path

from checkpoint_convert.hf_to_megatron import check_source, plan_megatron
from checkpoint_convert.locate import checkpoint_kind, iteration_folder
from checkpoint_convert.lora import holds_adapters
from checkpoint_convert.manifest import MANIFEST
from checkpoint_convert.megatron_to_hf import open_megatron
from checkpoint_convert.tensors.huggingface import HuggingFaceSource
from checkpoint_convert.tensors.torch_dist import TorchDistSource
from dpop_base.architectures.read import read_architecture
from dpop_base.errors import UserError


def check_weights(folder: Path) -> None:
    """
    Raises UserError where a Hugging Face or Megatron checkpoint lacks a tensor or a file, or holds one that is
    truncated or has another shape than its config.json says, or where it holds LoRA adapters alone.
    """
    if checkpoint_kind(folder) == "huggingface":
        _check_huggingface(folder)
    else:
        _check_megatron(folder)


def check_converted(folder: Path) -> None:
    """
    Raises UserError where any byte of a Hugging Face folder that a conversion wrote is not as it was written; reads
    all of it. For readers other than ours, which would not notice. Other folders pass.
    """
    if (folder / MANIFEST).is_file():
        source = HuggingFaceSource(folder)
        try:
            source.check_elements()
        finally:
            source.close()


def _check_huggingface(folder: Path) -> None:
    architecture = read_architecture(folder)
    source = HuggingFaceSource(folder)
    try:
        check_source(folder, source, architecture)
        plan_megatron(architecture, source.tensors, None)
    finally:
        source.close()


def _check_megatron(folder: Path) -> None:
    iteration = iteration_folder(folder)
    files = TorchDistSource(iteration)
    try:
        if holds_adapters(files):
            raise UserError(
                f"{folder}: holds LoRA adapters alone; name the hf/ folder of their run, or merge them into one with "
                "checkpoint-convert megatron-to-hf"
            )
        if files.prefix:
            raise UserError(
                f"{folder}: names its tensors {files.prefix}decoder..., as NeMo 2 and Megatron-Bridge do; convert it "
                "first with checkpoint-convert megatron-to-hf"
            )
        files.check_files()
    finally:
        files.close()
    open_megatron(iteration, read_architecture(folder)).close()
