"""Parameters of every rank, counted on models that Megatron-Core builds without memory, on the meta device."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from dpop_base.architectures import Architecture, read_architecture
from megatron_dpop.plan.choice import LayoutChoice
from megatron_dpop.plan.parameters import model_parameters, stage_parameters, token_parameters
from tests.checkpoint_convert.models import CONFIGS
from tests.distributed import run_ranks
from tests.megatron_dpop.plan.shapes import QWEN2_72B, QWEN3_32B, QWEN_72B, SMALL, SMAUG_72B, SMOLLM2_135M

RANKS = 64
PUBLISHED = Path(__file__).parents[2] / "dpop_base" / "published"
LAYOUTS: dict[str, tuple[Architecture, LayoutChoice]] = {
    "qwen-72b": (QWEN_72B, LayoutChoice(tensor=8, pipeline=8)),
    "qwen-72b interleaved": (QWEN_72B, LayoutChoice(tensor=4, pipeline=4, virtual_pipeline=5, context=2, data=2)),
    "qwen-72b uneven": (
        QWEN_72B,
        LayoutChoice(tensor=4, pipeline=8, first_stage_layers=9, last_stage_layers=5, data=2),
    ),
    "qwen2-72b": (QWEN2_72B, LayoutChoice(tensor=8, pipeline=8)),
    "smaug-72b": (SMAUG_72B, LayoutChoice(tensor=8, pipeline=8)),
    "qwen3-32b": (QWEN3_32B, LayoutChoice(tensor=4, pipeline=16)),
    "smollm2, padded heads, tied": (SMOLLM2_135M, LayoutChoice(tensor=2, pipeline=2, pad_heads=True, data=16)),
    "small": (SMALL, LayoutChoice(tensor=4, pipeline=4, data=4)),
}


class _OnMeta(TorchFunctionMode):
    """Every tensor that names a device is made on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("meta")}
        return func(*args, **kwargs)


def _parameters_of_ranks(architecture: Architecture, choice: LayoutChoice) -> list[int]:
    """Builds the model of one rank after another under a process group that only pretends."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_dpop.runtime.devices import prepare_device

    prepare_device(0)
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_dpop.models.build import build_model, transformer_config

    dist.destroy_process_group()
    counts = []
    for rank in range(choice.devices):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=choice.devices)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=choice.tensor,
            pipeline_model_parallel_size=choice.pipeline,
            virtual_pipeline_model_parallel_size=choice.virtual_pipeline,
            context_parallel_size=choice.context,
            expert_model_parallel_size=choice.expert,
            expert_tensor_parallel_size=choice.expert_tensor,
            create_gloo_process_groups=False,
        )
        config = transformer_config(architecture, choice, params_dtype=torch.bfloat16)
        with torch.device("meta"), _OnMeta():
            chunks = build_model(
                architecture, config, ProcessGroupCollection.use_mpu_process_groups(), transformer_engine=False
            )
        counts.append(sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters()))
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return counts


@pytest.mark.parametrize(
    "name", [name if name == "small" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_every_rank_of_64_holds_what_the_plan_says(name: str) -> None:
    architecture, choice = LAYOUTS[name]
    assert choice.devices == RANKS
    counted = run_ranks(_parameters_of_ranks, 1, architecture, choice)[0]
    ranks_per_stage = RANKS // choice.pipeline  # the pipeline is the slowest of Megatron's dimensions
    planned = [stage_parameters(architecture, choice, rank // ranks_per_stage).base for rank in range(RANKS)]
    assert counted == planned


def _parameters_of_families(architectures: list[Architecture], choice: LayoutChoice) -> list[list[int]]:
    return [_parameters_of_ranks(architecture, choice) for architecture in architectures]


def test_families_hold_what_the_plan_says_at_four_ranks(tmp_path: Path) -> None:
    """Norms after attention and feed-forward, fused linears, biases of some, tied embeddings."""
    architectures = []
    for family in ("gemma3", "glm4", "phi4-mini", "seed-oss", "granite"):
        (tmp_path / "config.json").write_text(json.dumps(CONFIGS[family]().to_dict()))
        architectures.append(read_architecture(tmp_path))
    choice = LayoutChoice(tensor=2, pipeline=2)
    counted = run_ranks(_parameters_of_families, 1, architectures, choice)[0]
    for architecture, of_ranks in zip(architectures, counted, strict=True):
        planned = [stage_parameters(architecture, choice, rank // 2).base for rank in range(4)]
        assert of_ranks == planned, architecture.family


@pytest.mark.slow
def test_mixtures_hold_what_the_plan_says_at_four_ranks(tmp_path: Path) -> None:
    """Experts over ranks of their own, whole or cut; a shared expert with its gate; dense layers between, in chunks."""
    layouts = {
        "qwen3-moe-dense-between": LayoutChoice(tensor=2, pipeline=2, virtual_pipeline=2, expert=2),
        "qwen2-moe": LayoutChoice(tensor=2, pipeline=2, expert_tensor=2),
        "mixtral": LayoutChoice(tensor=1, pipeline=1, data=4, expert=2, expert_tensor=2),
    }
    for family, choice in layouts.items():
        (tmp_path / "config.json").write_text(json.dumps(CONFIGS[family]().to_dict()))
        architecture = read_architecture(tmp_path)
        counted = run_ranks(_parameters_of_ranks, 1, architecture, choice)[0]
        per_stage = choice.devices // choice.pipeline
        planned = [stage_parameters(architecture, choice, rank // per_stage).base for rank in range(choice.devices)]
        assert counted == planned, family


def test_published_models_have_the_sizes_of_their_cards(tmp_path: Path) -> None:
    checked = 0
    for path in sorted(PUBLISHED.glob("*.json")):
        for name, entry in json.loads(path.read_text()).items():
            if "parameters" in entry:
                (tmp_path / "config.json").write_text(json.dumps(entry["config"]))
                assert model_parameters(read_architecture(tmp_path)) == entry["parameters"], name
                checked += 1
    assert checked > 20


def test_a_token_passes_through_what_transformers_would_multiply_it_by(tmp_path: Path) -> None:
    """Of transformers' own parameters all but the experts', and of these the share that a token is sent to."""
    cards = {"Mixtral-8x7B-v0.1": 12.9e9, "Qwen3-30B-A3B": 3.3e9, "Qwen3-235B-A22B": 22e9}
    for name, entry in json.loads((PUBLISHED / "experts.json").read_text()).items():
        (tmp_path / "config.json").write_text(json.dumps(entry["config"]))
        architecture = read_architecture(tmp_path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        experts = sum(size for name, size in sizes.items() if ".experts." in name)
        active = sum(sizes.values()) - experts + experts * architecture.experts.per_token // architecture.experts.count
        assert token_parameters(architecture) == active
        assert active == pytest.approx(cards[name.split("/")[1]], rel=0.02)


def test_whole_models_have_their_published_sizes() -> None:
    """Counts that the weights' own files give; SmolLM2's output layer is its embedding."""
    assert model_parameters(QWEN_72B) == 72_287_920_128
    assert model_parameters(QWEN2_72B) == 72_706_203_648
    assert model_parameters(SMOLLM2_135M) == 134_515_008


def test_ranks_hold_the_whole_model_between_them() -> None:
    """Norms and biases of row-parallel layers alone are on every tensor-parallel rank."""
    choice = LayoutChoice(tensor=8, pipeline=8)
    stages = [stage_parameters(SMAUG_72B, choice, stage) for stage in range(choice.pipeline)]
    repeated = SMAUG_72B.num_layers * 3 * SMAUG_72B.hidden_size + SMAUG_72B.hidden_size
    held = choice.tensor * sum(stage.base for stage in stages)
    assert held - (choice.tensor - 1) * repeated == model_parameters(SMAUG_72B)
    assert asdict(stages[0]).keys() == {
        "linear", "output", "other", "experts", "adapters", "expert_adapters", "frozen",
    }  # fmt: skip
