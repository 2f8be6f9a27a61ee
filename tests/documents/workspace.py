"""The files that the documents' commands speak of, small: models, pairs, the README's config, runs."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from checkpoint_convert.commands import run as checkpoint_convert
from tests.documents.commands import ROOT, blocks
from tests.megatron_dpop.report import runs
from tests.tiny import write_model, write_pairs

MODELS = (
    "models/Qwen2.5-7B",
    "models/Qwen2.5-7B-Instruct",
    "models/SmolLM2-135M",
    "models/Meta-Llama-3-8B",
    "models/Qwen1.5-72B",
    "MODEL_FOLDER",
)


def prepare(folder: Path) -> Path:
    """Everything in `folder`; `/models` of the documents is its `models`."""
    model = write_model(folder / "tiny", num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=4096)
    (folder / "models").mkdir()
    for name in MODELS:
        (folder / name).symlink_to(model)
    (folder / "pairs").mkdir()
    _write_parquet(folder / "pairs.parquet", 128, seed=0)
    _write_parquet(folder / "held_out.parquet", 8, seed=1)
    for split, file in (("train", "pairs.parquet"), ("validation", "held_out.parquet")):
        (folder / "pairs" / f"{split}.parquet").symlink_to(folder / file)
    (text,) = (text for text in blocks(ROOT / "README.md", "yaml") if text.startswith("# config.yaml"))
    (folder / "config.yaml").write_text(placed(text, folder))
    for name, end in (("dpo", -40.0), ("dpop", 3.0), ("first", 3.0)):
        runs.write_run(folder / "runs" / name, loss="dpo" if name == "dpo" else "dpop", end=end)
    assert (
        checkpoint_convert(["hf-to-megatron", str(model), str(folder / "runs" / "dpop" / "checkpoints"), "--quiet"])
        == 0
    )
    _write_checkpoints_of_others(folder, model)
    for shared in ("examples", "tools", "megatron_dpop"):
        (folder / shared).symlink_to(ROOT / shared)
    return folder


def placed(text: str, folder: Path) -> str:
    """The documents' absolute paths, in the workspace."""
    return text.replace("/models/", f"{folder}{os.sep}models{os.sep}")


def _write_checkpoints_of_others(folder: Path, model: Path) -> None:
    """One without config.json, as Megatron-LM leaves it; one laid out as NeMo 2 does; a LoRA adapter of PEFT."""
    converted = folder / "megatron-lm" / "checkpoints"
    assert checkpoint_convert(["hf-to-megatron", str(model), str(converted), "--quiet"]) == 0
    (folder / "nemo" / "llama3_8b").mkdir(parents=True)
    shutil.copytree(converted / "release", folder / "nemo" / "llama3_8b" / "weights")
    shutil.rmtree(converted / "huggingface")
    (converted / "conversion-manifest.json").unlink()
    adapter = folder / "adapters" / "sft"
    adapter.mkdir(parents=True)
    config = json.loads((model / "config.json").read_text())
    width = config["hidden_size"]
    module = "base_model.model.model.layers.0.self_attn.o_proj"
    parts = {f"{module}.lora_A.weight": np.ones((2, width)), f"{module}.lora_B.weight": np.ones((width, 2))}
    save_file({name: part.astype(np.float32) for name, part in parts.items()}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))


def _write_parquet(path: Path, count: int, *, seed: int) -> None:
    import pyarrow.json
    import pyarrow.parquet

    lines = write_pairs(path.with_suffix(".jsonl"), count, seed=seed)
    pyarrow.parquet.write_table(pyarrow.json.read_json(lines), path)
