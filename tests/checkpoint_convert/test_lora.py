"""Adapters as a checkpoint holds them: merged on export, exported alone for PEFT, and the same to Megatron."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from checkpoint_convert.commands import run
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.megatron_to_peft import megatron_to_peft
from checkpoint_convert.rules.adapters import LINEARS, peft_modules
from checkpoint_convert.rules.families import RULES
from checkpoint_convert.verify import logits_of, verify
from checkpoint_convert.weights import check_weights
from dpop_base.architectures import read_architecture
from dpop_base.errors import UserError
from tests.checkpoint_convert.adapters import ALPHA, RANK, peft_delta, save_adapters, with_peft
from tests.checkpoint_convert.models import FAMILIES, save_small
from tests.checkpoint_convert.qwen1 import Qwen1
from tests.distributed import run_ranks

TOKENS = torch.randint(0, 101, (40,), generator=torch.Generator().manual_seed(2))
# Adapters on the feed-forward too, which experts cannot have (`megatron_dpop.config.expert_layout`).
MIXTURES = {"qwen3-moe", "qwen3-moe-dense-between", "qwen2-moe", "mixtral"}
DENSE_FAMILIES = [family for family in FAMILIES if family not in MIXTURES]
BF16_HALF_ULP = 2.0**-8


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bf16 model with biases and grouped heads, and the checkpoint of its bf16 adapters."""
    folder = tmp_path_factory.mktemp("lora") / "qwen2"
    save_small("qwen2", folder, torch.bfloat16)
    return folder, save_adapters([folder], torch.bfloat16)[0]


def _adapter(lora: Path, target: Path) -> dict[str, torch.Tensor]:
    megatron_to_peft(lora, target, progress=False)
    return load_file(target / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["hf", "megatron"])
def test_merged_export_is_base_plus_adapter_to_one_rounding(
    kind: str, small: tuple[Path, Path], tmp_path: Path
) -> None:
    model, lora = small
    base = model
    if kind == "megatron":
        base = tmp_path / "megatron"
        hf_to_megatron(model, base, progress=False)
    megatron_to_hf(lora, tmp_path / "merged", base=base, progress=False)
    adapter = _adapter(lora, tmp_path / "adapter")
    original, merged = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "merged"))
    assert merged.keys() == original.keys()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()  # transformers would add the adapter once more
    adapted = 0
    for name, weight in original.items():
        delta = peft_delta(adapter, name)
        if delta is None:
            assert torch.equal(merged[name], weight), name
            continue
        adapted += 1
        exact = weight.double() + delta
        assert merged[name].dtype is torch.bfloat16
        error = (merged[name].double() - exact).abs()
        assert (error <= BF16_HALF_ULP * exact.abs() * (1 + 1e-4)).all(), name
    assert adapted == 4 * 7


def test_a_dtype_to_convert_to_is_rounded_to_once(small: tuple[Path, Path], tmp_path: Path) -> None:
    model, lora = small
    adapter = _adapter(lora, tmp_path / "adapter")
    megatron_to_hf(lora, tmp_path / "fp32", dtype="fp32", progress=False)
    megatron_to_hf(lora, tmp_path / "fp16", dtype="fp16", progress=False)
    folders = (model, tmp_path / "fp32", tmp_path / "fp16")
    original, fp32, fp16 = (load_file(folder / "model.safetensors") for folder in folders)
    name = "model.layers.3.self_attn.v_proj.weight"
    delta = peft_delta(adapter, name)
    assert delta is not None
    exact = original[name].double() + delta
    assert ((fp32[name].double() - exact).abs() <= 1e-6).all()
    assert torch.equal(fp16[name], fp32[name].half())


def test_the_adapter_alone_is_a_peft_folder(small: tuple[Path, Path], tmp_path: Path) -> None:
    model, lora = small
    tensors = _adapter(lora, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model)
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    assert config["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert len(tensors) == 4 * 7 * 2
    q, k = (tensors[f"base_model.model.model.layers.1.self_attn.{n}_proj.lora_A.weight"] for n in "qk")
    assert torch.equal(q, k)  # one A of the fused linear
    ours = logits_of(lora, TOKENS)  # from the merged weights, rounded to bf16
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        before = base(TOKENS[None]).logits[0]
        theirs = with_peft(base, tmp_path / "adapter")(TOKENS[None]).logits[0]
    assert (theirs - before).abs().max() > 20 * (theirs - ours).abs().max()


def adapted_logits(folders: list[tuple[str, str]], tensor: int, tokens: list[int]) -> list[list[list[float]]]:
    """[tokens, vocab] of each (converted base, adapters), from Megatron-Core with the adapters beside its linears."""
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection

    from checkpoint_convert.locate import iteration_folder
    from megatron_dpop.checkpoints.checkpoint import load_model
    from megatron_dpop.config.layout import ModelLayout
    from megatron_dpop.config.schema import LoraConfig
    from megatron_dpop.models.build import build_model, transformer_config
    from megatron_dpop.models.layout import RowLayout
    from megatron_dpop.models.lora import add_adapters, is_adapter
    from megatron_dpop.rows.context import attention_plan

    parallel_state.initialize_model_parallel(tensor)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    row = torch.tensor(tokens)
    layout = RowLayout(positions=torch.arange(len(row)), attention=attention_plan([(len(row),)], len(row)))
    found = []
    for base, adapters in folders:
        a = read_architecture(Path(base))
        config = transformer_config(a, ModelLayout(tensor), params_dtype=torch.float32)
        [model] = build_model(a, config, groups, transformer_engine=False)
        add_adapters(model, LoraConfig(rank=RANK, alpha=ALPHA), a, groups, seed=0)
        load_model([model], a, iteration_folder(Path(base)))
        state = {name: value for name, value in model.sharded_state_dict().items() if is_adapter(name)}
        loaded = dist_checkpointing.load({"model": state}, str(iteration_folder(Path(adapters))))
        model.load_state_dict(loaded["model"], strict=False)
        with torch.no_grad():
            output = model(row[None], layout.positions[None], None, packed_seq_params=layout)
        shards = [torch.empty_like(output) for _ in range(tensor)]
        dist.all_gather(shards, output.contiguous(), group=groups.tp)
        found.append(torch.cat(shards, -1)[0, :, : a.vocab_size].tolist())
    return found


@pytest.mark.parametrize(
    ("tensor", "families"),
    [
        (1, ["qwen2"]),
        pytest.param(2, ["qwen2"], marks=pytest.mark.slow),
        pytest.param(1, DENSE_FAMILIES, marks=pytest.mark.slow),
    ],
)
def test_peft_gives_megatrons_logits(tensor: int, families: list[str], tmp_path: Path) -> None:
    models = [tmp_path / family for family in families]
    for family, model in zip(families, models, strict=True):
        save_small(family, model)
        hf_to_megatron(model, tmp_path / f"{family}_megatron", progress=False)
    adapters = save_adapters(models)
    folders = [(str(tmp_path / f"{f}_megatron"), str(lora)) for f, lora in zip(families, adapters, strict=True)]
    found = run_ranks(adapted_logits, tensor, folders, tensor, TOKENS.tolist())[0]
    for family, model, lora, ours in zip(families, models, adapters, found, strict=True):
        _adapter(lora, tmp_path / f"{family}_adapter")
        with torch.no_grad():
            if family == "qwen1":
                before = Qwen1.load(model)(TOKENS)
                theirs = with_peft(Qwen1.load(model), tmp_path / f"{family}_adapter")(TOKENS)
            else:
                base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
                before = base(TOKENS[None]).logits[0]
                theirs = with_peft(base, tmp_path / f"{family}_adapter")(TOKENS[None]).logits[0]
        largest = theirs.abs().max()
        assert (theirs - before).abs().max() > 0.1 * largest, family
        gap = (torch.tensor(ours) - theirs).abs().max()
        assert gap <= 1e-5 * largest, f"{family}: {gap} of {largest}"


def test_qwen1s_two_c_proj_are_told_apart(tmp_path: Path) -> None:
    save_small("qwen1", tmp_path / "qwen1")
    a = read_architecture(tmp_path / "qwen1")
    rules = RULES[a.family]
    assert peft_modules(rules, a, frozenset({"linear_proj"})) == ["attn.c_proj"]
    assert peft_modules(rules, a, frozenset({"linear_fc2"})) == ["mlp.c_proj"]
    assert peft_modules(rules, a, frozenset(LINEARS)) == ["c_attn", "c_proj", "w2", "w1"]


def test_commands(small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, lora = small
    assert run(["megatron-to-hf", str(lora), str(tmp_path / "merged"), "--base", str(model), "--quiet"]) == 0
    assert run(["megatron-to-hf", str(lora / "iter_0000005"), str(tmp_path / "alone"), "--adapter", "--quiet"]) == 0
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "conversion-manifest.json",
    }  # fmt: skip
    assert run(["megatron-to-hf", str(lora), str(tmp_path / "merged"), "--base", str(model), "--quiet"]) == 0  # done
    assert verify(tmp_path / "merged", lora, progress=False).equal
    assert not verify(tmp_path / "merged", model, progress=False).equal
    capsys.readouterr()
    assert run(["megatron-to-hf", str(lora), str(tmp_path / "x"), "--base", str(tmp_path / "nowhere")]) == 2
    assert (
        f"the base model {tmp_path / 'nowhere'} of these LoRA adapters is not here; name it" in capsys.readouterr().err
    )
    save_small("qwen3", tmp_path / "qwen3")
    assert run(["megatron-to-hf", str(lora), str(tmp_path / "x"), "--base", str(tmp_path / "qwen3")]) == 2
    assert "is another architecture than that of the LoRA adapters" in capsys.readouterr().err
    hf_to_megatron(model, tmp_path / "whole", progress=False)
    for option in (["--adapter"], ["--base", str(model)]):
        assert run(["megatron-to-hf", str(tmp_path / "whole"), str(tmp_path / "x"), *option]) == 2
        assert f"holds whole weights and no LoRA adapters; leave {option[0]} out" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_adapters_alone_are_no_model_to_train(small: tuple[Path, Path]) -> None:
    _, lora = small
    with pytest.raises(UserError, match="qwen2_lora: holds LoRA adapters alone; name the hf/ folder of their run, or"):
        check_weights(lora)


def test_damaged_description(small: tuple[Path, Path], tmp_path: Path) -> None:
    _, lora = small
    config = lora / "adapter_config.json"
    kept = config.read_text()
    try:
        config.write_text(kept.replace('"r": 4', '"r": 8'))
        with pytest.raises(UserError, match=r"has other shapes .*lora_A \[4, 64\] instead of \[8, 64\]"):
            megatron_to_hf(lora, tmp_path / "x", progress=False)
        config.write_text(kept[:40])
        with pytest.raises(UserError, match=r"adapter_config.json: is damaged .*; copy it again"):
            megatron_to_peft(lora, tmp_path / "x", progress=False)
        config.unlink()
        with pytest.raises(UserError, match=r"holds LoRA adapters but no adapter_config.json; copy it"):
            megatron_to_hf(lora, tmp_path / "x", progress=False)
    finally:
        config.write_text(kept)
