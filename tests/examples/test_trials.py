"""The trials of the accuracy experiment and of the arena: what is asked is all there, each with a good config."""

from collections import Counter
from pathlib import Path

import pytest

from examples.arena import contest
from examples.arithmetic.pages import filled, markdown
from examples.arithmetic.stage import Stage
from examples.arithmetic.trials import RATE, Trial
from examples.paper import accuracy
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.config.losses import PAIR_LOSSES

ARENA = contest.trials(list(PAIR_LOSSES))


@pytest.mark.parametrize("trials", [accuracy.trials(), ARENA], ids=["accuracy", "arena"])
def test_every_trial_has_a_name_and_a_good_config(trials: list[Trial]) -> None:
    assert len({one.name for one in trials}) == len(trials)
    for one in trials:
        config = config_from_dict(one.config(Stage(Path("root")), Path("run")), origin=one.name)
        assert config.loss.name == one.loss
        assert config.train.seed == one.seed
        assert config.reference.cache == f"root/reference/{one.edit}-seed{one.seed}"


def test_accuracy_has_the_papers_losses_and_betas_and_the_baselines() -> None:
    trials = accuracy.trials()
    plain = {(one.loss, dict(one.keys)["beta"], one.edit, one.seed) for one in trials if one.loss in accuracy.LOSSES}
    for seed in (0, 1, 2):
        for loss in ("dpo", "ipo", "dpop"):
            assert {(loss, beta, "low", seed) for beta in (0.1, 0.3, 1.0)} <= plain
            assert (loss, 0.3, "high", seed) in plain
    assert Counter(one.loss for one in trials if one.loss not in accuracy.LOSSES) == {"sft": 3, "cpo": 3}
    assert [one.rate for one in trials if one.rate != RATE] == [accuracy.LOWER_RATE] * 3
    ends = [one for one in trials if one.ends_at_margin_of is not None]
    assert [one.ends_at_margin_of.name for one in ends] == [f"low-dpop-beta0.3-seed{seed}" for seed in (0, 1, 2)]
    assert {one.ends_at_margin_of for one in ends} <= set(trials)


def test_the_arena_has_every_pair_loss_at_its_defaults() -> None:
    counts = Counter((one.loss, one.edit) for one in ARENA)
    assert counts == {(loss, edit): 3 for loss in PAIR_LOSSES for edit in ("low", "high")}
    for one in ARENA:
        assert dict(one.keys) == {"beta": PAIR_LOSSES[one.loss]().beta}


def test_a_page_takes_what_is_computed() -> None:
    page = "# Title\n\n<!-- low: by page.py -->\nold\n\nlines\n<!-- end -->\n\nrest\n<!-- high: x -->\n<!-- end -->\n"
    found = filled(page, {"low": markdown(["a", "b"], [["x", "1"]]), "high": "two"})
    table = "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert found == page.replace("old\n\nlines\n", f"\n{table}\n\n").replace("x -->\n", "x -->\n\ntwo\n\n")
    assert filled(found, {"high": "two"}) == found
    with pytest.raises(ValueError, match="no place for absent"):
        filled(page, {"absent": ""})
