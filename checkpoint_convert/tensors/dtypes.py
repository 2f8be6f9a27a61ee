"""Names of the dtypes that checkpoints use, in ours and in others' spelling."""

ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # what can be converted
# What may lie beside weights (masks, counters) and is never read.
OTHER_ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
OTHER_ITEM_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
SAFETENSORS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
FROM_SAFETENSORS = {value: key for key, value in SAFETENSORS.items()}
