"""The router's function, against transformers' own and itself; what is counted of it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from dpop_base.architectures import read_architecture
from tests.distributed import run_ranks

TOKENS, EXPERTS, HIDDEN, CHOSEN = 64, 6, 16, 2


def routes(states: list[list[float]], weight: list[list[float]], shares_sum_to_one: bool) -> tuple[list, list, bool]:
    from megatron_dpop.models.experts import route

    logits = torch.tensor(states) @ torch.tensor(weight).T
    shares, chosen = route(logits, per_token=CHOSEN, shares_sum_to_one=shares_sum_to_one)
    with torch.no_grad():
        again = route(logits, per_token=CHOSEN, shares_sum_to_one=shares_sum_to_one)
    return shares.tolist(), chosen.tolist(), torch.equal(shares, again[0]) and torch.equal(chosen, again[1])


@pytest.mark.parametrize("shares_sum_to_one", [True, False])
def test_routes_are_transformers_own(shares_sum_to_one: bool) -> None:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, num_experts=EXPERTS, num_experts_per_tok=CHOSEN, norm_topk_prob=shares_sum_to_one
    )
    router = Qwen3MoeTopKRouter(config)
    states, weight = torch.randn(TOKENS, HIDDEN), torch.randn(EXPERTS, HIDDEN)
    with torch.no_grad():
        router.weight.copy_(weight)
        _, wanted, indices = router(states)
    [(shares, chosen, same)] = run_ranks(routes, 1, states.tolist(), weight.tolist(), shares_sum_to_one)
    assert same, "a pass without gradients routes otherwise"
    torch.testing.assert_close(torch.tensor(shares), torch.zeros(TOKENS, EXPERTS).scatter(1, indices, wanted))
    assert torch.equal(torch.tensor(chosen), torch.zeros(TOKENS, EXPERTS, dtype=torch.bool).scatter(1, indices, True))


def metrics_of(loads: list[float], folder: str) -> dict[str, float]:
    from megatron_dpop.training.expert_loads import load_metrics

    return load_metrics(loads, read_architecture(Path(folder)))


def test_load_is_the_busiest_experts_over_the_mean(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        num_hidden_layers=4, num_experts=EXPERTS, num_experts_per_tok=CHOSEN, mlp_only_layers=[0, 2]
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    loads = [0.0] * 6 + [5, 5, 5, 5, 5, 5] + [0.0] * 6 + [30, 0, 0, 0, 0, 0]
    [found] = run_ranks(metrics_of, 1, loads, str(tmp_path))
    assert found == {"moe/load_balance/1": 1.0, "moe/load_balance/3": 6.0, "moe/load_balance": 6.0}
    assert run_ranks(metrics_of, 1, [0.0] * 24, str(tmp_path)) == [{}]
