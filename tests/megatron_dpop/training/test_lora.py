"""LoRA trains like PEFT in plain transformers at every layout, and nothing but adapters has a gradient or a state."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from checkpoint_convert.megatron_to_peft import megatron_to_peft
from dpop_base.architectures import read_architecture
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.flops import adapter_parameters
from tests.distributed import kill_ranks_when, run_ranks
from tests.megatron_dpop.training.adapters import Share, join, references_here, save_start, shares_here
from tests.megatron_dpop.training.reference_run import reference_run
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_all, train_here

RELATIVE = 1e-5
LAYERS = 4
LORA = {"rank": 4, "alpha": 8}
TWO_RANKS = {
    "tp2": {"tensor": 2, "sequence": False},
    "tp2_sequence": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "pp2_interleaved": {"pipeline": 2, "virtual_pipeline": 2},
    "cp2": {"context": 2},
    "dp2": {},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    write_model(folder / "model")
    write_model(folder / "odd", num_attention_heads=6, num_key_value_heads=3, hidden_size=96)
    write_pairs(folder / "pairs.jsonl", 11)
    return folder


def _tree(world: Path, run: str, *, model: str = "model", lora: dict | None = None, **sections: dict) -> dict:
    return write_config(
        world,
        world / model,
        lora={**LORA, **(lora or {})},
        checkpoint={"every": 3},
        run={"dir": str(world / run)},
        **sections,
    )


@pytest.fixture(scope="module")
def start(world: Path) -> Path:
    """The adapters as they begin, as a PEFT folder."""
    run_ranks(save_start, 1, _tree(world, "start"))
    megatron_to_peft(world / "start" / "checkpoints", world / "adapter", progress=False)
    return world / "adapter"


@pytest.fixture(scope="module")
def expected(world: Path, start: Path) -> list[dict[str, float]]:
    return reference_run(_tree(world, ""), adapter=start)


def _check(metrics: list[dict], expected: list[dict[str, float]], layout: str) -> None:
    assert len(metrics) == len(expected)
    assert metrics[0]["reference/drift"] == 0.0
    for step, reference in zip(metrics, expected, strict=True):
        for name, value in reference.items():
            if not name.startswith("source/"):
                assert step[name] == pytest.approx(value, rel=RELATIVE, abs=1e-6), (layout, name, step["step"])


def test_one_rank_trains_like_peft(world: Path, expected: list[dict[str, float]]) -> None:
    _check(run_ranks(train_here, 1, _tree(world, "one"))[0], expected, "tp1")
    losses = [step["loss"] for step in expected]
    assert losses[0] == pytest.approx(np.log(2))
    assert abs(losses[2] - losses[0]) > 0.01  # the adapters have learnt something


@pytest.mark.slow
def test_two_ranks_train_like_peft_at_every_layout(world: Path, expected: list[dict[str, float]]) -> None:
    trees = {name: _tree(world, name, parallel=parallel) for name, parallel in TWO_RANKS.items()}
    trees["dp2_replicated"] = _tree(world, "dp2_replicated", optimizer={"distributed": False})
    for name, metrics in zip(trees, run_ranks(train_all, 2, list(trees.values()))[0], strict=True):
        _check(metrics, expected, name)


@pytest.mark.slow
def test_four_ranks_train_like_peft(world: Path, expected: list[dict[str, float]]) -> None:
    layouts = {
        "tp2_pp2": {"tensor": 2, "pipeline": 2},
        "tp2_cp2": {"tensor": 2, "context": 2},
        "tp2_dp2": {"tensor": 2},
        "pp2_dp2": {"pipeline": 2},
    }
    trees = [_tree(world, name, parallel=parallel) for name, parallel in layouts.items()]
    for name, metrics in zip(layouts, run_ranks(train_all, 4, trees)[0], strict=True):
        _check(metrics, expected, name)


@pytest.fixture(scope="module")
def trained(world: Path) -> tuple[dict, list[Share]]:
    """A run of three steps on one rank, and its shares at the fourth."""
    tree = _tree(world, "trained")
    run_ranks(train_here, 1, tree)
    tree["train"]["steps"] = 4
    (Path(tree["run"]["dir"]) / "config.yaml").unlink()  # a run's number of steps is its own
    return tree, [shares[0] for shares in run_ranks(shares_here, 1, [tree])]


def test_only_adapters_have_gradients_and_optimizer_state(trained: tuple[dict, list[Share]]) -> None:
    tree, [share] = trained
    names = {
        f"decoder.layers.{layer}.{linear}_adapter.lora_{part}"
        for layer in range(LAYERS)
        for linear in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
        for part in "AB"
    }
    assert set(share.adapters) == share.with_gradient == names
    assert share.optimized == share.held == sum(array.size for array in share.adapters.values())
    assert share.held == adapter_parameters(read_architecture(Path(tree["model"]["path"])), LoraConfig(**LORA))
    assert all(np.abs(gradient).max() > 0 for gradient in share.gradients.values())


def test_a_checkpoint_holds_the_adapters_and_their_optimizer_state_alone(trained: tuple[dict, list[Share]]) -> None:
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    tree, [share] = trained
    stored = FileSystemReader(Path(tree["run"]["dir"], "checkpoints", "iter_0000003")).read_metadata()
    tensors = {key for key, entry in stored.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)}
    stacked = {re.sub(r"layers\.\d+\.", "layers.", name) for name in share.adapters}
    states = ("", "optimizer.state.param.", "optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq.")
    assert tensors == {f"{state}{name}" for state in states for name in stacked}


@pytest.mark.slow
def test_gradients_do_not_depend_on_the_layout(trained: tuple[dict, list[Share]]) -> None:
    """From the adapters that one rank trained: their checkpoint is cut anew, and B is no longer zero."""
    tree, [one] = trained
    by_rank = run_ranks(shares_here, 2, [{**tree, "parallel": parallel} for parallel in TWO_RANKS.values()])
    for at, layout in enumerate(TWO_RANKS):
        shares: list[Share] = [results[at] for results in by_rank]
        assert [share.loss for share in shares] == pytest.approx([one.loss] * 2, rel=RELATIVE), layout
        replicas = 2 if layout in ("cp2", "dp2") else 1  # which share the optimizer's state
        assert sum(share.optimized for share in shares) == sum(share.held for share in shares) / replicas, layout
        values, gradients = join(shares, "adapters"), join(shares, "gradients")
        assert values.keys() == gradients.keys() == one.adapters.keys()
        for name, wanted in one.gradients.items():
            np.testing.assert_array_equal(values[name], one.adapters[name], err_msg=f"{layout} {name}")
            atol = RELATIVE * np.abs(wanted).max()
            np.testing.assert_allclose(gradients[name], wanted, rtol=0, atol=atol, err_msg=f"{layout} {name}")


@pytest.mark.slow
def test_adapters_begin_alike_at_every_layout(world: Path, start: Path) -> None:
    tree = _tree(world, "start_cut", parallel={"tensor": 2, "pipeline": 2})
    run_ranks(save_start, 4, tree)
    megatron_to_peft(Path(tree["run"]["dir"], "checkpoints"), world / "adapter_cut", progress=False)
    whole, cut = (load_file(folder / "adapter_model.safetensors") for folder in (start, world / "adapter_cut"))
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(cut[name], value, err_msg=name)
        if name.endswith("lora_B.weight"):
            assert not value.any()
        else:  # Kaiming: uniform within 1 / sqrt(inputs)
            bound = 1 / np.sqrt(value.shape[1])
            assert 0.9 * bound < np.abs(value).max() <= bound
            assert len(np.unique(value)) > 0.9 * value.size


def test_the_reference_of_a_resumed_run_is_the_frozen_base(world: Path, trained: tuple[dict, list[Share]]) -> None:
    tree, _ = trained
    [[resumed, first]] = run_ranks(references_here, 1, [tree, _tree(world, "fresh")])
    assert resumed == first


def _comparable(metrics: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in metrics]


def _lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "ranks"), [({}, 1), ({"tensor": 2}, 2)], ids=["tp1", "tp2"])
def test_a_killed_run_repeats_an_uninterrupted_one(world: Path, parallel: dict, ranks: int) -> None:
    """In bf16 and with dropout, whose masks must be those of the uninterrupted run too."""

    def tree(run: str) -> dict:
        return _tree(
            world,
            f"{run}_{ranks}",
            lora={"dropout": 0.2},
            precision={"params": "bf16"},
            parallel=parallel,
            train={"steps": 7},
        )

    plain, killed = tree("plain"), tree("killed")
    plain["lora"]["dropout"] = 0.0
    whole, undropped = run_ranks(train_all, ranks, [tree("whole"), plain])[0]
    run = Path(killed["run"]["dir"])
    kill_ranks_when(lambda: _lines(run) >= 5, train_here, ranks, killed)
    resumed = run_ranks(train_here, ranks, killed)[0]
    assert _comparable(resumed) == _comparable(whole)
    assert undropped[0]["loss"] == whole[0]["loss"]  # B is still zero
    assert undropped[1]["loss"] != whole[1]["loss"]


@pytest.mark.slow
def test_recomputation_changes_nothing(world: Path) -> None:
    """Not even where the first layer's only adapter lies in a recomputed block whose input has no gradient."""
    for lora in ({"dropout": 0.2}, {"targets": ["linear_fc2"]}):
        trees = [
            _tree(
                world,
                f"recompute_{recompute}_{len(lora.get('targets', []))}",
                lora=lora,
                train={"recompute": recompute},
            )
            for recompute in ("none", "selective", "full")
        ]
        none, selective, full = run_ranks(train_all, 1, trees)[0]
        for other in (selective, full):
            for line, wanted in zip(other, none, strict=True):
                assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
                assert line["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-6)


@pytest.mark.slow
def test_added_heads_stay_inert(world: Path) -> None:
    """Three key/value heads on two ranks: adapters of the added heads learn nothing, and are dropped on export."""
    one = run_ranks(train_here, 1, _tree(world, "odd_1", model="odd"))[0]
    padded = _tree(world, "odd_2", model="odd", parallel={"tensor": 2, "pad_heads": True})
    two = run_ranks(train_here, 2, padded)[0]
    for line, wanted in zip(two, one, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=RELATIVE)
        assert line["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=RELATIVE)
    for run in ("odd_1", "odd_2"):
        megatron_to_peft(world / run / "checkpoints", world / f"{run}_adapter", progress=False)
    a, b = (load_file(world / f"{run}_adapter" / "adapter_model.safetensors") for run in ("odd_1", "odd_2"))
    for name, value in a.items():
        np.testing.assert_allclose(b[name], value, rtol=0, atol=1e-3 * np.abs(value).max(), err_msg=name)
    padded["train"]["steps"] = 5
    (world / "odd_2" / "config.yaml").unlink()
    moved = run_ranks(train_here, 1, {**padded, "parallel": {}})[0]  # the added heads are not in this layout
    assert moved[3]["loss"] < one[0]["loss"]
    assert json.dumps(moved[:3]) == json.dumps(two[:3])
