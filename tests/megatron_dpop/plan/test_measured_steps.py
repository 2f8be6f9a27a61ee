"""The plan beside steps that were timed on one H100 (docs/gpu_results.md)."""

from pathlib import Path

import pytest
from benchmarks.made_up_pairs import KINDS, MadeUpPairs
from gpu_checks.slice import _described

from megatron_dpop.plan.from_config import choice_of, workload_of
from megatron_dpop.plan.hardware import ASSUMPTIONS, DEVICES, GIB
from megatron_dpop.plan.plan import Setting, make_plan

PAIRS = 75  # of a step
# Model, layers, vocabulary, FP8 recipe: seconds of a step, GiB that torch allocated at the peak.
MEASURED = {
    ("72b", 3, 16384, None): (0.904, 57.7),
    ("72b", 3, 16384, "tensorwise"): (0.627, 61.8),
    ("72b", 3, 16384, "blockwise"): (0.702, 61.8),
    ("72b", 1, 152064, None): (0.769, 63.3),
    ("7b", 8, 32000, None): (0.654, 43.0),
    ("7b", 8, 32000, "tensorwise"): (0.510, 44.9),
}


@pytest.mark.parametrize("slice_of_a_model", MEASURED, ids=str)
def test_steps_took_about_what_the_plan_gives(slice_of_a_model: tuple, tmp_path: Path) -> None:
    name, layers, vocabulary, fp8 = slice_of_a_model
    seconds, gib = MEASURED[slice_of_a_model]
    config, architecture = _described(tmp_path, name, layers, vocabulary, fp8, 8192)
    object.__setattr__(config.train, "global_batch_pairs", PAIRS)
    lengths = MadeUpPairs(KINDS["metamath-like"], 5000, vocab_size=vocabulary).lengths()
    workload = workload_of(config, lengths.prompt_tokens, lengths.completion_tokens, lengths.common_prefix_tokens)
    plan = make_plan(Setting(architecture, workload, DEVICES["h100"]), choice_of(config))
    # FP8 casts weigh more beside narrow matrices than the plan knows: the 7B's step is planned 21% too fast.
    assert plan.time.step == pytest.approx(seconds, rel=0.15 if fp8 is None else 0.25)
    assert plan.memory.total - ASSUMPTIONS.context_bytes == pytest.approx(gib * GIB, rel=0.05)
