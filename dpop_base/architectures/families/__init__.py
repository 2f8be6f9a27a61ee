"""The families by their `model_type`."""

from dpop_base.architectures.families.ernie import ERNIE4_5
from dpop_base.architectures.families.gemma import GEMMA3
from dpop_base.architectures.families.glm import GLM, GLM4
from dpop_base.architectures.families.granite import GRANITE
from dpop_base.architectures.families.internlm import INTERNLM3
from dpop_base.architectures.families.llama import LLAMA
from dpop_base.architectures.families.mistral import MISTRAL
from dpop_base.architectures.families.mixtral import MIXTRAL
from dpop_base.architectures.families.phi import PHI3
from dpop_base.architectures.families.qwen import QWEN
from dpop_base.architectures.families.qwen2 import QWEN2, QWEN3
from dpop_base.architectures.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from dpop_base.architectures.families.seed_oss import SEED_OSS
from dpop_base.architectures.families.smollm3 import SMOLLM3
from dpop_base.architectures.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(ERNIE4_5, GEMMA3, GLM, GLM4, GRANITE, INTERNLM3, LLAMA, MISTRAL, MIXTRAL, PHI3, QWEN, QWEN2, QWEN2_MOE),
        *(QWEN3, QWEN3_MOE, SEED_OSS, SMOLLM3),
    )
}

# Families that people ask for and that are not built, each with the reason.
NOT_BUILT = {
    "gemma2": "it caps attention scores, which neither Megatron-Core nor the attention kernels here compute",
    "gemma3": "it reads images; of Gemma 3 only text models (gemma3_text) are built",
    "olmoe": "it normalises all heads' queries and keys together; Megatron-Core normalises each head's",
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe", "granitemoe", "phimoe", "qwen3_next"),
        "of mixtures of experts only mixtral, qwen2_moe and qwen3_moe are built",
    ),
}
