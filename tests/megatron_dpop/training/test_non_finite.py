"""A number of one rank that is not finite stops all of them, says where, and leaves no checkpoint of that step."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from megatron_dpop.rows.schedule import step_examples
from tests.distributed import leave_model_parallel, run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_here

PAIRS, BATCH, BAD_STEP = 12, 4, 1
BAD_PAIR = step_examples(seed=0, step=BAD_STEP, batch=BATCH, examples=PAIRS)[2]
BAD_TOKEN = 94  # w89 of the tokenizer in tests/tiny.py


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("non_finite")
    write_model(folder / "sound", num_hidden_layers=2)
    write_model(folder / "broken", num_hidden_layers=2)
    weights = load_file(folder / "broken" / "model.safetensors")
    weights["model.embed_tokens.weight"][BAD_TOKEN] = torch.nan
    save_file(weights, folder / "broken" / "model.safetensors", metadata={"format": "pt"})
    lines = write_pairs(folder / "sound.jsonl", PAIRS).read_text().replace("w89", "w88").splitlines()
    (folder / "sound.jsonl").write_text("\n".join(lines) + "\n")
    bad = json.loads(lines[BAD_PAIR])
    lines[BAD_PAIR] = json.dumps({**bad, "prompt": bad["prompt"] + " w89"})
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _tree(
    world: Path, run: str, *, reference: str | None = "sound", data: dict | None = None, **parallel: object
) -> dict:
    return write_config(
        world,
        world / "broken",
        parallel=parallel,
        reference={"model": str(world / reference) if reference else None},
        data=data or {},
        train={"steps": 3, "global_batch_pairs": BATCH},
        checkpoint={"every": 1},
        run={"dir": str(world / run)},
    )


def errors_here(trees: list[dict]) -> list[str]:

    from megatron_dpop.engine.non_finite import NonFiniteError

    messages = []
    for tree in trees:
        with pytest.raises(NonFiniteError) as raised:
            train_here(tree)
        messages.append(str(raised.value))
        leave_model_parallel()
    return messages


@pytest.mark.parametrize(
    ("ranks", "parallel", "reporting"),
    [(2, {}, "[01]"), pytest.param(4, {"tensor": 2, "pipeline": 2}, "2", marks=pytest.mark.slow)],
    ids=["dp2", "tp2_pp2"],
)
def test_every_rank_stops_with_the_same_message(world: Path, ranks: int, parallel: dict, reporting: str) -> None:
    policy = _tree(world, f"policy_{ranks}", **parallel)
    reference = _tree(world, f"reference_{ranks}", reference=None, **parallel)
    by_rank = run_ranks(errors_here, ranks, [policy, reference])
    assert all(messages == by_rank[0] for messages in by_rank)
    of_policy, of_reference = by_rank[0]
    where = rf"\(rank {reporting}: example {BAD_PAIR} \(pairs\)\)"
    assert re.match(rf"step {BAD_STEP}: the loss is not a finite number {where}; ", of_policy)
    assert of_reference.startswith(f"reference: the log-probability of example {BAD_PAIR} (pairs) is not a finite")
    run = Path(policy["run"]["dir"])
    assert [path.name for path in (run / "checkpoints").glob("iter_*")] == [f"iter_{BAD_STEP:07d}"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0]
    assert not list(Path(reference["run"]["dir"]).glob("reference/*"))


@pytest.mark.slow
def test_the_command_says_it_in_one_line(world: Path) -> None:
    config = world / "config.yaml"
    config.write_text(yaml.safe_dump(_tree(world, "command", tensor=2)))
    done = subprocess.run(
        [sys.executable, "-m", "megatron_dpop", "train", str(config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "MEGATRON_DPOP_DEVICE": "cpu"},
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    failed = [line for line in done.stderr.splitlines() if "failed" in line]
    assert len(failed) == 1
    message = f"step {BAD_STEP}: the loss is not a finite number (rank 0: example {BAD_PAIR} (pairs))"
    assert failed[0].startswith(f"megatron-dpop: failed: {message}")
    assert done.stderr.rstrip().endswith(failed[0])


def test_validation_and_ktos_kl_stop_every_rank_too(world: Path) -> None:
    held_out = {"train": str(world / "sound.jsonl"), "validation": str(world / "pairs.jsonl")}
    validated = _tree(world, "validated", data=held_out)
    kto = {**_tree(world, "kto"), "loss": {"name": "kto"}, "train": {"steps": 3, "global_batch_pairs": 2 * BATCH}}
    by_rank = run_ranks(errors_here, 2, [validated, kto])
    assert by_rank[0] == by_rank[1]
    of_validation, of_kl = by_rank[0]
    where = rf"\(rank [01]: example {BAD_PAIR} \(pairs\)\)"
    assert re.match(rf"validation at step 0: the loss is not a finite number {where}; ", of_validation)
    assert not Path(validated["run"]["dir"], "metrics.jsonl").exists()
    assert not list(Path(validated["run"]["dir"], "checkpoints").glob("iter_*"))

    step, bad = _first_bad_kto_step()
    assert of_kl.startswith(f"step {step}: KTO's KL estimate, from prompts with other prompts' completions, is not a")
    named = re.findall(r"rank [01]: ([^;)]*\))", of_kl)
    assert sorted(", ".join(named).split(", ")) == [f"example {at} (pairs)" for at in bad]


def _first_bad_kto_step() -> tuple[int, list[int]]:
    """The first step that holds a completion of the bad pair's prompt, and which: KTO trains on both by themselves."""
    for step in range(PAIRS // BATCH):
        examples = step_examples(seed=0, step=step, batch=2 * BATCH, examples=2 * PAIRS)
        if bad := sorted({2 * BAD_PAIR, 2 * BAD_PAIR + 1} & set(examples)):
            return step, bad
    raise AssertionError("no step holds the bad prompt")
