"""Compares exported models, through plain transformers, with the Megatron checkpoints that they came from."""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from megatron_dpop.config.schema import ParallelConfig
from megatron_dpop.runtime import processes


def compare(run: Path, text: str, device: torch.device) -> dict[str, float]:
    """How far the logits of a run's two models over `text` lie apart.

    `fp32`: largest difference over the largest logit, both computing in fp32: whether the weights are the same. `bf16`:
    norm of the difference over norm of the logits, both computing in bf16, where each rounds in its own places;
    `bf16_rounding` is how far transformers' bf16 logits lie from its own fp32 ones by the same measure.
    """
    from megatron_dpop.analysis.logits import megatron_logits

    tokens = AutoTokenizer.from_pretrained(run / "hf", trust_remote_code=False)(text).input_ids
    ours, theirs = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        ours[dtype] = megatron_logits(run / "checkpoints", [tokens], dtype=dtype, device=device)[0].cpu()
        exported = AutoModelForCausalLM.from_pretrained(run / "hf", dtype=dtype, trust_remote_code=False)
        with torch.no_grad():
            theirs[dtype] = exported(torch.tensor([tokens])).logits[0].float()
    exact, rounded = torch.float32, torch.bfloat16
    norm = theirs[exact].norm()
    return {
        "fp32": ((ours[exact] - theirs[exact]).abs().max() / theirs[exact].abs().max()).item(),
        "bf16": ((ours[rounded] - theirs[rounded]).norm() / norm).item(),
        "bf16_rounding": ((theirs[rounded] - theirs[exact]).norm() / norm).item(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text")
    parser.add_argument("runs", type=Path, nargs="+", metavar="run")
    arguments = parser.parse_args()
    disable_progress_bar()
    device = processes.initialize(ParallelConfig(), seed=0)
    found = {str(run): compare(run, arguments.text, device) for run in arguments.runs}
    processes.shut_down()
    print(json.dumps(found))
