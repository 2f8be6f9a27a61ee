"""Other programs read our exports: CTranslate2, mlx-lm and llama.cpp's converter give transformers' logits.

Each test is skipped only where the program's package cannot be fetched. Packages are installed beside each other in
folders of their own, so that nothing of the environment changes.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedConfig, Qwen2Config

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from tests.checkpoint_convert.models import fill
from tests.consumers.logits import TOKENS
from tests.exhaustive import in_ci

REPOSITORY = Path(__file__).parents[2]
UV = shutil.which("uv") or str(REPOSITORY / ".uv" / "bin" / "uv")
PACKAGES = {
    "ctranslate2": ["ctranslate2==4.8.5"],
    "mlx-lm": ["mlx==0.32.4", "mlx-cpu==0.32.4", "mlx-lm==0.32.2"],
}
LLAMA_CPP = "llama-cpp-python==0.3.36"  # its source holds llama.cpp's converter, which no package does
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOLERANCE = 3e-5  # of the largest logit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exports(smollm2: Path, qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `megatron-to-hf` writes of SmolLM2 itself, and of a small Qwen2.5 and a small Mistral."""
    folder = tmp_path_factory.mktemp("exports")
    sources = {"smollm2": smollm2, "qwen2.5": folder / "qwen2.5", "mistral": folder / "mistral"}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    qwen2 = Qwen2Config(**SHAPE, vocab_size=151936, tie_word_embeddings=True, rope_parameters=rope)
    _save(qwen2, qwen, sources["qwen2.5"])
    rope = {"rope_type": "default", "rope_theta": 1e5}
    _save(
        MistralConfig(**SHAPE, vocab_size=49152, sliding_window=None, rope_parameters=rope), smollm2, sources["mistral"]
    )
    made = {}
    for name, source in sources.items():
        hf_to_megatron(source, folder / f"{name}_megatron", progress=False)
        # fp32 for all: others round to bf16 in their own places.
        megatron_to_hf(folder / f"{name}_megatron", folder / f"{name}_export", dtype="fp32", progress=False)
        made[name] = folder / f"{name}_export"
    return made


def _save(config: PreTrainedConfig, tokenizer: Path, folder: Path) -> None:
    """A random model, with the tokenizer of another folder."""
    model = AutoModelForCausalLM.from_config(config)
    fill(dict(model.named_parameters()))
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "generation*"))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def expected(exports: dict[str, Path]) -> dict[str, np.ndarray]:
    return {name: transformers_logits(export) for name, export in exports.items()}


def check(name: str, found: np.ndarray, wanted: np.ndarray) -> None:
    found = found[:, : wanted.shape[1]]
    gap = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert gap < TOLERANCE, (name, gap)
    assert (found.argmax(-1) == wanted.argmax(-1)).all(), name


def transformers_logits(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def fetched(folder: Path, command: list[str], name: str) -> Path:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"{name} cannot be installed: {result.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.parametrize("program", in_ci("mlx-lm", of=PACKAGES))
def test_another_program_computes_the_same_logits(
    program: str, exports: dict[str, Path], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    site = tmp_path / "site"
    options = ["--quiet", "--python", sys.executable, "--no-deps", "--target", str(site)]
    fetched(site, [UV, "pip", "install", *options, *PACKAGES[program]], program)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "2"}
    script = Path(__file__).with_name("logits.py")
    folders = [str(export) for export in exports.values()]
    arguments = [sys.executable, str(script), program, str(tmp_path / "logits.npz"), *folders]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    with np.load(tmp_path / "logits.npz") as found:
        for name, export in exports.items():
            check(name, found[export.name], expected[name])


def test_llama_cpps_converter_keeps_the_model(
    exports: dict[str, Path], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """llama.cpp itself is not built: what its converter wrote is compared, and the smallest model read and computed."""
    download = [UV, "run", "--no-project", "--with", "pip", "python", "-m", "pip", "download", "--quiet", "--no-deps"]
    where = ["--no-binary", "llama-cpp-python", "--dest", str(tmp_path)]
    fetched(tmp_path, [*download, *where, LLAMA_CPP], LLAMA_CPP)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        wanted = ("/conversion/", "/gguf-py/", "/convert_hf_to_gguf.py")
        source.extractall(tmp_path, [m for m in source if any(part in m.name for part in wanted)], filter="data")
    (converter,) = tmp_path.rglob("convert_hf_to_gguf.py")
    environment = {**os.environ, "PYTHONPATH": str(converter.parent / "gguf-py")}
    running = {}
    for name, export in exports.items():
        command = [sys.executable, str(converter), str(export), "--outtype", "f32", "--outfile"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        running[name] = subprocess.Popen([*command, str(tmp_path / f"{name}.gguf")], env=environment, **pipes)
    for name, process in running.items():
        _, said = process.communicate()
        assert process.returncode == 0, (name, said[-2000:])
        check_gguf(tmp_path / f"{name}.gguf", exports[name])
    # GGUF has Mistral as llama, which it is without a window.
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="mistral.gguf", dtype=torch.float32)
    with torch.no_grad():
        check("mistral", model(torch.tensor([TOKENS])).logits[0].numpy(), expected["mistral"])


def check_gguf(path: Path, export: Path) -> None:
    """Settings by llama.cpp's names, and every tensor's values; llama.cpp rotates other pairs of q's and k's rows."""
    import gguf

    reader = gguf.GGUFReader(path)
    config = json.loads((export / "config.json").read_text())
    kind = reader.get_field("general.architecture").contents()
    fields = {
        "rope.freq_base": "rope_theta",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "context_length": "max_position_embeddings",
    }
    for name, ours in fields.items():
        assert reader.get_field(f"{kind}.{name}").contents() == pytest.approx(config[ours]), name
    names = gguf.get_tensor_name_map(_architecture(kind), config["num_hidden_layers"])
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    weights = {name: value for shard in export.glob("*.safetensors") for name, value in load_file(shard).items()}
    assert len(stored) == len(weights)
    for name, value in weights.items():
        found = stored[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            found = found.reshape(heads, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        np.testing.assert_array_equal(found, value, err_msg=name)


def _architecture(kind: str) -> int:
    import gguf

    return next(architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
