"""Names of the dtypes that weights may have: ours, and those of PyTorch and `config.json`."""

TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
OUR_NAMES = {theirs: ours for ours, theirs in TORCH_NAMES.items()}
