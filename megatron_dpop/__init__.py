"""Preference training on Megatron-Core.

What may be imported from here is in docs/api.md; it is loaded when it is asked for, so that importing the package is
free.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from megatron_dpop import plan
    from megatron_dpop.api import TrainedRun, plan_config, train
    from megatron_dpop.config import Config, load_config
    from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs
    from megatron_dpop.losses.registry import make_loss

_HOMES = {
    "train": "megatron_dpop.api",
    "plan_config": "megatron_dpop.api",
    "TrainedRun": "megatron_dpop.api",
    "Config": "megatron_dpop.config",
    "load_config": "megatron_dpop.config",
    "make_loss": "megatron_dpop.losses.registry",
    "vocab_parallel_linear_logprobs": "megatron_dpop.logprobs.vocab_parallel",
}
__all__ = [
    "Config",
    "TrainedRun",
    "load_config",
    "make_loss",
    "plan",
    "plan_config",
    "train",
    "vocab_parallel_linear_logprobs",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        return import_module("dpop_base.version").project_version()
    if name == "plan":
        return import_module("megatron_dpop.plan")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
