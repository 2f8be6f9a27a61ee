"""A checkpoint's logits for a few sequences, from the Megatron-Core model itself."""

from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from checkpoint_convert.locate import assets_folder, iteration_folder
from dpop_base.architectures import read_architecture
from megatron_dpop.checkpoints.checkpoint import load_model
from megatron_dpop.config.layout import ModelLayout
from megatron_dpop.models.build import build_model, transformer_config
from megatron_dpop.models.layout import RowLayout
from megatron_dpop.rows.context import attention_plan
from megatron_dpop.runtime.devices import on_gpu


@torch.no_grad()
def megatron_logits(
    checkpoint: Path, sequences: list[list[int]], *, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """fp32 [tokens, vocabulary] of each sequence, all of them in one row.

    Runs in one process, whose process groups must be initialised with tensor and pipeline 1.
    """
    architecture = read_architecture(assets_folder(checkpoint))
    config = transformer_config(architecture, ModelLayout(), params_dtype=dtype)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    (model,) = build_model(architecture, config, groups, transformer_engine=on_gpu())
    model.to(device)
    load_model([model], architecture, iteration_folder(checkpoint))
    lengths = [len(sequence) for sequence in sequences]
    row = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    layout = RowLayout(
        positions=torch.cat([torch.arange(length, device=device) for length in lengths]),
        attention=attention_plan([(length,) for length in lengths], len(row)),
    )
    logits = model(row[None], layout.positions[None], None, packed_seq_params=layout)
    return list(logits[0, :, : architecture.vocab_size].float().split(lengths))
