"""FLOPs against torch's own counter, run on the model that is trained."""

from dataclasses import replace

import pytest

from dpop_base.architectures import Architecture
from megatron_dpop.config import Config
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.flops import TRAINING_FACTOR, example_flops, example_training_flops, forward_flops
from megatron_dpop.plan.from_config import choice_of, pair_workload
from megatron_dpop.plan.workload import ExampleCost
from tests.distributed import run_ranks
from tests.megatron_dpop.plan.measured import Pairs, engine_and_rows
from tests.megatron_dpop.plan.shapes import MIXTURE, QWEN_72B, SHARED_MIXTURE, SMALL

# 64 scored tokens a pair fill the tiles of the log-probabilities, which pad to that many.
ROWS = Pairs(row_tokens=1024, rows=1, prompt_tokens=32, completion_tokens=48, common_tokens=32)


def _counted(architecture: Architecture, config: Config, backward: bool) -> dict[str, int]:
    """FLOPs of matrix products by operation, of one row."""
    from torch.utils.flop_counter import FlopCounterMode

    from megatron_dpop.runtime import processes

    device = processes.initialize(config.parallel, seed=0)
    from megatron_dpop.engine.forward import logps_only, run_rows

    engine, rows = engine_and_rows(architecture, config, ROWS, device)
    counter = FlopCounterMode(display=False)
    with counter:
        run_rows(engine, rows, logps_only, forward_only=not backward)
    return {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("architecture", [SMALL, MIXTURE, SHARED_MIXTURE], ids=["dense", "experts", "shared expert"])
def test_a_row_costs_what_torch_counts(architecture: Architecture, backward: bool) -> None:
    config = ROWS.step_config()
    counted = run_ranks(_counted, 1, architecture, config, backward)[0]
    row = ROWS.workload(config).row(choice_of(config))
    # Padding counts here, for it is multiplied too.
    linear = forward_flops(architecture, tokens=row.tokens, scores=row.scores, attended=0)
    products = sum(count for name, count in counted.items() if "mm" in name)
    if backward:
        output = forward_flops(architecture, tokens=0, scores=row.scores, attended=0)
        # Logits are computed again, tile by tile; torch does not count `addmm_`, which adds up the output layer's two
        # gradients.
        assert products == TRAINING_FACTOR * (linear - output) + 2 * output
    else:
        assert products == linear


def test_sharing_saves_what_the_trees_do_not_repeat() -> None:
    config = ROWS.step_config()
    shared = pair_workload(config, prompt=90, completion=190, common=95)
    assert shared.packed == ExampleCost(
        tokens=185 + 2 * 94, scores=95 + 2 * 95, attended=185 * 93 + 2 * (94 * 185 + 47 * 95)
    )
    assert shared.unshared == ExampleCost(tokens=2 * 279, scores=380, attended=2 * 279 * 140)
    assert example_flops(QWEN_72B, shared.packed) < 0.7 * example_flops(QWEN_72B, shared.unshared)


def test_frozen_weights_take_two_thirds() -> None:
    adapters = LoraConfig(rank=1, targets=("linear_qkv",))  # a few thousandths of the model's products
    cost = ExampleCost(tokens=400.0, scores=300.0, attended=0.0)
    assert example_training_flops(QWEN_72B, adapters, cost) == pytest.approx(
        2 / 3 * example_training_flops(QWEN_72B, None, cost), rel=1e-3
    )
    only_attention = replace(cost, tokens=0.0, scores=0.0, attended=1e4)
    assert example_training_flops(QWEN_72B, adapters, only_attention) == example_training_flops(
        QWEN_72B, None, only_attention
    )


def test_a_dense_model_costs_six_flops_a_parameter_and_token() -> None:
    """PaLM, appendix B: 6 N + 12 L H Q T for each of T tokens, half of the last term in causal attention."""
    tokens = 4096
    whole = ExampleCost(tokens=tokens, scores=tokens, attended=tokens * tokens / 2)
    matrices = 80 * (4 * 8192**2 + 3 * 8192 * 24576) + 8192 * 152064
    attention = 12 * 80 * 8192 * tokens / 2
    assert example_training_flops(QWEN_72B, None, whole) == pytest.approx(tokens * (6 * matrices + attention))
