"""Short forms of a config mean what their long forms do."""

from typing import get_args

import pytest

from dpop_base.errors import UserError
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.config.losses import DpopConfig, IpoConfig, LossConfig
from megatron_dpop.config.schema import LoggingConfig, RuleName, SourceConfig, WandbConfig

TREE: dict = {"model": {"path": "model"}, "data": {"train": "pairs.parquet"}}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({}, DpopConfig()),
        ({"loss": None}, DpopConfig()),
        ({"loss": {"lambda": 5}}, DpopConfig(**{"lambda": 5})),
        ({"loss": {"name": "ipo", "beta": 0.2}}, IpoConfig(beta=0.2)),
    ],
)
def test_a_loss_without_a_name_is_dpop(given: dict, meant: LossConfig) -> None:
    assert config_from_dict({**TREE, **given}, origin="test").loss == meant


def test_sources_by_path_alone_and_in_full() -> None:
    def sources(train: object) -> tuple[SourceConfig, ...]:
        return config_from_dict({**TREE, "data": {"train": train}}, origin="test").data.train

    assert sources("a.jsonl") == sources(["a.jsonl"]) == sources({"path": "a.jsonl"}) == (SourceConfig("a.jsonl"),)
    named = {"path": "b.jsonl", "weight": 0.5, "name": "orca"}
    assert sources(["a.jsonl", named]) == (SourceConfig("a.jsonl"), SourceConfig("b.jsonl", 0.5, "orca"))


def _logging(**keys: object) -> LoggingConfig:
    return config_from_dict({**TREE, "logging": keys}, origin="test").logging


def test_weights_and_biases_by_project_alone_and_in_full() -> None:
    assert _logging().wandb is None
    assert _logging(wandb="smaug").wandb == WandbConfig("smaug") == _logging(wandb={"project": "smaug"}).wandb
    with pytest.raises(UserError, match=r"logging\.wandb\.project is missing"):
        _logging(wandb={"entity": "team"})


def test_rules_that_stop_a_run() -> None:
    assert _logging().stop_on == _logging(stop_on=None).stop_on == ()
    assert _logging(stop_on="reference_drift").stop_on == ("reference_drift",)
    assert _logging(stop_on="any").stop_on == _logging(stop_on=["any"]).stop_on == get_args(RuleName)
    with pytest.raises(UserError, match=r"logging\.stop_on.*'drift' is not valid: .*'reference_drift'"):
        _logging(stop_on=["drift"])


@pytest.mark.parametrize("key", ["optimizer.lr", "optimizer.warmup_steps", "train.steps", "checkpoint.every"])
def test_true_is_no_number(key: str) -> None:
    section, name = key.split(".")
    with pytest.raises(UserError, match=rf"{key}: True is not valid: a number is needed"):
        config_from_dict({**TREE, section: {name: True}}, origin="test")
