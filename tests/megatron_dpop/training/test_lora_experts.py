"""Adapters of experts train like W + alpha / rank * B A by hand, at every layout, and are exported so, and for PEFT."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from checkpoint_convert.megatron_to_peft import megatron_to_peft
from dpop_base.architectures import read_architecture
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.flops import adapter_parameters
from megatron_dpop.plan.parameters import stage_parameters
from tests.checkpoint_convert.models import save_chat_models
from tests.distributed import run_ranks
from tests.exhaustive import in_ci
from tests.megatron_dpop.training.adapters import save_start, shares_here
from tests.megatron_dpop.training.reference_run import reference_run
from tests.tiny import write_config, write_pairs
from tests.training import run_here, train_all

RELATIVE = 1e-5
LORA = {"rank": 4, "alpha": 10}
ATTENTION = ["linear_qkv", "linear_proj"]
FAMILIES = ("qwen2-moe", "qwen3-moe-dense-between", "mixtral")  # a shared expert; dense layers between; other names
OF_PEFT = ("mixtral", "qwen3-moe")  # experts alone, and in every layer
LAYOUTS = {
    "ep2": (2, {"expert": 2}),
    "tp2": (2, {"tensor": 2}),
    "tp2_ep2": (2, {"tensor": 2, "expert": 2}),
    "tp2_etp2": (2, {"tensor": 2, "expert_tensor": 2}),
    "pp2_cp2_ep2": (4, {"pipeline": 2, "context": 2, "expert": 2}),
    "ep2_etp2": (4, {"expert": 2, "expert_tensor": 2}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora_experts")
    write_pairs(folder / "pairs.jsonl", 11)
    return save_chat_models({*FAMILIES, *OF_PEFT}, folder)


def _tree(world: Path, family: str, run: str, *, lora: dict | None = None, **sections: dict) -> dict:
    return write_config(
        world,
        world / family,
        lora={**LORA, **(lora or {})},
        run={"dir": str(world / f"{run}_{family}")},
        **sections,
    )


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[str, list[dict[str, float]]]:
    found = {}
    for family in FAMILIES:
        tree = _tree(world, family, "start")
        run_ranks(save_start, 1, tree)
        found[family] = reference_run(tree, adapter=_factors(tree))
    return found


def _factors(tree: dict) -> Path:
    """A folder with A and B of each of the family's modules, PEFT's or as PEFT's would be."""
    target = Path(tree["run"]["dir"], "factors")
    with patch("checkpoint_convert.megatron_to_peft.peft_obstacle", return_value=None):
        megatron_to_peft(Path(tree["run"]["dir"], "checkpoints"), target, progress=False)
    return target


def _check(metrics: list[dict], expected: list[dict[str, float]], case: str) -> None:
    assert metrics[0]["reference/drift"] == 0.0
    assert metrics[0]["moe/route_agreement"] == 1.0
    assert abs(expected[2]["loss"] - expected[0]["loss"]) > 0.01, "the adapters have learnt something"
    for step, reference in zip(metrics, expected, strict=True):
        for name, value in reference.items():
            if not name.startswith("source/"):
                assert step[name] == pytest.approx(value, rel=RELATIVE, abs=1e-6), (case, name, step["step"])


@pytest.mark.slow
def test_one_rank_trains_as_by_hand(world: Path, expected: dict[str, list[dict[str, float]]]) -> None:
    trees = [_tree(world, family, "one") for family in FAMILIES]
    for family, metrics in zip(FAMILIES, run_ranks(train_all, 1, trees)[0], strict=True):
        _check(metrics, expected[family], family)


@pytest.mark.slow
@pytest.mark.parametrize("layout", in_ci("tp2_ep2", "ep2_etp2", of=LAYOUTS))
def test_every_layout_trains_as_by_hand(layout: str, world: Path, expected: dict[str, list[dict[str, float]]]) -> None:
    ranks, parallel = LAYOUTS[layout]
    families = FAMILIES if ranks == 2 else FAMILIES[:1]
    trees = [_tree(world, family, layout, parallel=parallel) for family in families]
    for family, metrics in zip(families, run_ranks(train_all, ranks, trees)[0], strict=True):
        _check(metrics, expected[family], f"{family} at {layout}")


def _merged_by_hand(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """W + alpha / rank * B A, in fp32, of each of the base's tensors that has an adapter."""
    weights, factors = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    scale = LORA["alpha"] / LORA["rank"]
    for name in {name.split(".lora_")[0].removeprefix("base_model.model.") for name in factors}:
        a, b = (factors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert b.abs().max() > 0, name
        weights[f"{name}.weight"] = weights[f"{name}.weight"].addmm(b, a, alpha=scale)
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("targets", [ATTENTION, [*ATTENTION, "linear_fc1", "linear_fc2"]], ids=["attention", "all"])
def test_exports_are_merged_to_the_bit_and_loaded_by_peft(targets: list[str], world: Path) -> None:
    """PEFT's own loading of the adapter, which stacks experts' factors as transformers stacks experts."""
    families = (*FAMILIES, OF_PEFT[1])
    trees = [
        _tree(
            world,
            family,
            f"exported_{len(targets)}",
            lora={"targets": targets},
            optimizer={"lr": 0.02},
            checkpoint={"export_hf": True},
        )
        for family in families
    ]
    outcomes = run_ranks(run_here, 1, *trees)[0]
    for family, tree, outcome in zip(families, trees, outcomes, strict=True):
        run = Path(tree["run"]["dir"])
        merged, by_hand = load_file(run / "hf" / "model.safetensors"), _merged_by_hand(world / family, _factors(tree))
        assert merged.keys() == by_hand.keys()
        for name, tensor in by_hand.items():
            assert torch.equal(merged[name], tensor), (family, name)
        if targets == ATTENTION or family in OF_PEFT:
            _check_peft_gives_the_merged_model(world / family, run)
        else:
            others = "shared experts" if family == "qwen2-moe" else "dense layers"
            assert f"experts, but then none of the feed-forward of its {others}; {run / 'hf'} is the" in outcome.said
            assert not (run / "adapter").exists()


def _check_peft_gives_the_merged_model(model: Path, run: Path) -> None:
    from peft import PeftModel

    tokens = torch.randint(5, 95, (1, 30), generator=torch.Generator().manual_seed(0))
    base, whole = (AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32) for at in (model, run / "hf"))
    with torch.no_grad():
        before, wanted = base(tokens).logits, whole(tokens).logits
        adapted = PeftModel.from_pretrained(base, str(run / "adapter"))(tokens).logits
    assert (wanted - before).abs().max() > 0.05 * wanted.abs().max(), model
    torch.testing.assert_close(adapted, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_adapters_alone_are_trained_and_counted(world: Path) -> None:
    tree = _tree(world, "qwen3-moe-dense-between", "counted")
    [[share]] = run_ranks(shares_here, 1, [tree])
    architecture = read_architecture(world / "qwen3-moe-dense-between")
    planned = stage_parameters(architecture, LayoutChoice(lora=LoraConfig(**LORA)), 0)
    lora = LoraConfig(**LORA)
    assert share.optimized == share.held == planned.trainable(lora) == adapter_parameters(architecture, lora)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in share.with_gradient} == {
        f"{linear}_adapter" for linear in (*ATTENTION, "linear_fc1", "linear_fc2")
    }
