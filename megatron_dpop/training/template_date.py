"""The date that chat templates are told: fixed once for a run, so that it goes on another day with the same tokens."""

from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
import yaml

from dpop_base.run_names import CONFIG
from megatron_dpop.config import Config
from megatron_dpop.data.templates import today
from megatron_dpop.training.identity import read_identity

KEY = "data.template_date"


def with_date(config: Config) -> Config:
    """The config with a date: the one asked for, else the one that the run in its folder began with, else today's."""
    if config.data.template_date is not None:
        return config
    return _dated(config, _began_on(Path(config.run.dir)) or today())


def with_date_of_rank_0(config: Config) -> Config:
    """Ranks that a launcher started around midnight, or on machines whose clocks differ, agree; every one calls it."""
    dates = [config.data.template_date]
    dist.broadcast_object_list(dates, src=0)
    return _dated(config, dates[0])


def date_words(config: Config) -> list[str]:
    """Words of a command line that give ranks the date."""
    return [f"--{KEY}", str(config.data.template_date)]


def _dated(config: Config, date: str | None) -> Config:
    return replace(config, data=replace(config.data, template_date=date))


def _began_on(folder: Path) -> str | None:
    """The date of the run in the folder, or of the reference that was computed for it; None where there is neither.
    Files that are damaged are reported by those who check them."""
    try:
        kept = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        date = kept["data"]["template_date"]
    except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        date = None
    if date is not None:
        return str(date)
    identity = read_identity(folder)
    return None if identity is None else identity.template_date
