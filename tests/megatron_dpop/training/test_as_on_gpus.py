"""What Megatron-Core does only on GPUs, brought about on the CPU: a run must come out the same."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.tiny import model_and_pairs, write_config
from tests.training import train_here


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_and_pairs(tmp_path_factory.mktemp("as_on_gpus"), 11)


def _tree(world: Path, name: str) -> dict:
    return write_config(world, world / "model", precision={"params": "bf16"}, run={"dir": str(world / name)})


def _trained(tree: dict, kept: str) -> list[dict]:
    """Metrics of a run, with the gradient's norm left on the device, or with weights loaded as FP8 ones are."""
    from megatron.core.optimizer import clip_grads, distrib_optimizer

    from megatron_dpop.checkpoints import checkpoint
    from megatron_dpop.engine import engine

    if kept == "norm":  # as with Transformer Engine's kernels
        clip_grads.multi_tensor_scale_tensor_impl = clip_grads.multi_tensor_scale_impl
    if kept == "weights":
        taken = []
        original = distrib_optimizer.DistributedOptimizer._copy_model_params_to_main_params

        def copy(self: object, state_dict: dict | None = None) -> None:
            taken.append(state_dict is not None)
            original(self, state_dict=state_dict)

        distrib_optimizer.DistributedOptimizer._copy_model_params_to_main_params = copy
        checkpoint.is_float8tensor = lambda tensor: tensor.dim() == 2
        made = engine.transformer_config

        def made_for_fp8(*args: Any, **options: Any) -> Any:
            config = made(*args, **options)
            config.fp8_param = True
            return config

        engine.transformer_config = made_for_fp8
        metrics = train_here(tree)
        assert taken
        assert all(taken)
        return metrics
    return train_here(tree)


@pytest.fixture(scope="module")
def plain(world: Path) -> list[dict]:
    return run_ranks(_trained, 1, _tree(world, "plain"), "")[0]


@pytest.mark.parametrize("kept", ["norm", "weights"])
def test_a_run_is_the_same(world: Path, plain: list[dict], kept: str) -> None:
    (found,) = run_ranks(_trained, 1, _tree(world, kept), kept)
    for line, expected in zip(found, plain, strict=True):
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6)
        for name in ("loss", "logps/chosen", "logps/rejected"):
            assert line[name] == pytest.approx(expected[name], rel=1e-6), name


def test_extra_states_are_not_loaded() -> None:
    """Delayed FP8's are pickles, which Transformer Engine refuses to run, and so do we."""
    assert run_ranks(_loadable_keys, 1) == [{"model": ["linear.weight"]}]


def _loadable_keys() -> dict[str, list[str]]:
    from megatron_dpop.checkpoints.checkpoint import _loadable

    entries = {"linear.weight": 1, "linear._extra_state": 2}
    return {chunk: list(kept) for chunk, kept in _loadable({"model": entries}).items()}
