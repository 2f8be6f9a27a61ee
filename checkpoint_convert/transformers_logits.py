"""A Hugging Face folder's logits as transformers computes them, where it is installed and the model fits in memory."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron
from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.families import FAMILIES
from dpop_base.errors import first_line

LARGEST_GAP = 1e-3  # of the largest logit: fp32 sums in another order differ by a hundredth of that


@dataclass(frozen=True)
class Logits:
    """Largest differences of logits of a prompt's last tokens; `transformers`: to the model that it loads."""

    num_tokens: int
    needed_tokens: int
    difference: float
    transformers: float | None = None
    why_not: str | None = None  # transformers was not asked
    scale: float = 0.0  # the largest logit

    @property
    def good(self) -> bool:
        return self.transformers is None or self.transformers <= LARGEST_GAP * max(1.0, self.scale)

    def lines(self) -> list[str]:
        said = [f"logits differ by at most {self.difference:.3g}, after {self.num_tokens} tokens"]
        if self.num_tokens < self.needed_tokens:
            said.append(
                f"the prompt is too short to see all that the config says: {self.needed_tokens} tokens would do"
            )
        if self.transformers is not None:
            verdict = "" if self.good else ": IT COMPUTES OTHERWISE"
            said.append(f"transformers' logits differ by at most {self.transformers:.3g}{verdict}")
        else:
            said.append(f"not compared with transformers: {self.why_not}")
        return said


def transformers_logits(
    folder: Path, a: Architecture, tokens: Tensor, *, keep: int
) -> tuple[Tensor | None, str | None]:
    """fp32 [keep, vocab] logits of the last tokens, or the reason why there are none. No code of the folder is run."""
    if FAMILIES[a.family].config_class is None:
        return None, f"it has no class for model_type {a.family!r}"
    needed = 4 * sum(torch.Size(recipe.shape).numel() for recipe in from_megatron(RULES[a.family], a))
    free = _available_bytes()
    if needed > free:
        return None, f"its weights take {needed / 1e9:.0f} GB in fp32 and {free / 1e9:.0f} GB of memory are free"
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        return None, "it is not installed"
    disable_progress_bar()  # it would run into ours
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        with torch.no_grad():
            return model(tokens[None], logits_to_keep=keep).logits[0], None
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return None, f"it failed ({first_line(error)})"


def _available_bytes() -> int:
    """Memory that can be had without swapping (Linux), caches included; elsewhere that which is free."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
