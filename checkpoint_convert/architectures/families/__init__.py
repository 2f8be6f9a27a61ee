"""The families by their `model_type`."""

from checkpoint_convert.architectures.families.llama import LLAMA
from checkpoint_convert.architectures.families.mistral import MISTRAL
from checkpoint_convert.architectures.families.qwen import QWEN
from checkpoint_convert.architectures.families.qwen2 import QWEN2, QWEN3
from checkpoint_convert.architectures.family import Family

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN, QWEN2, QWEN3)}
