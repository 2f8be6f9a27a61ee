"""pipeline.sh, sweep.sbatch, reference.sbatch and convert.sbatch: several jobs that need each other."""

import json
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import ROOT, Cluster, heartbeat, metrics
from tests.tiny import write_config, write_model, write_pairs

pytestmark = pytest.mark.slow

RECIPE = ROOT / "examples" / "recipes" / "smaug-34b.yaml"
STAGES = (
    "1-sft",
    "2-dpop-metamath",
    "3-dpop-arc",
    "4-dpop-hellaswag",
    "5-dpop-orca",
    "6-dpop-ultrafeedback",
    "7-dpo-truthy",
)


def test_smaug_34b_from_its_first_stage_to_the_exported_model(cluster: Cluster, tmp_path: Path) -> None:
    """Killed within its second stage and, by a cancelled job, between stages; each time the same command goes on."""
    from transformers import AutoModelForCausalLM

    runs = tmp_path / "runs" / "smaug-34b"
    words = ["--tiny", tmp_path, RECIPE]
    first = cluster.submit("pipeline.sh", *words)
    assert len(first) == len(STAGES)
    cluster.finished(first[0])
    second = runs / STAGES[1]
    cluster.wait_until(lambda: heartbeat(second)["state"] != "none", lambda: cluster.log(first[1]))
    cluster.command("scancel", first[1])
    # What waited for the stage is cancelled with it.
    for job in first[1:]:
        cluster.wait_for_state(job, "CANCELLED")
    weights = (runs / STAGES[0] / "checkpoints").stat().st_mtime

    again = cluster.submit("pipeline.sh", *words)
    assert len(again) == len(STAGES) - 1
    cluster.finished(again[1])
    cluster.command("scancel", *again[3:])
    cluster.finished(again[2])
    states = [heartbeat(runs / stage)["state"] for stage in STAGES]
    assert states == ["finished"] * 4 + ["none"] * 3

    last = cluster.submit("pipeline.sh", *words)
    assert len(last) == 3
    for job in last:
        cluster.finished(job)
    assert (runs / STAGES[0] / "checkpoints").stat().st_mtime == weights
    done = cluster.script("pipeline.sh", *words)
    assert (done.returncode, done.stdout.count("is finished")) == (0, len(STAGES))

    for stage in STAGES:
        lines = metrics(runs / stage)
        assert [line["step"] for line in lines] == [0, 1, 2, 3]
        # Each stage's reference is what it began with: the last stage's result.
        assert stage == STAGES[0] or lines[0]["reference/drift"] == 0.0
    assert [(runs / stage / "hf").exists() for stage in STAGES] == [False] * 6 + [True]
    model = AutoModelForCausalLM.from_pretrained(runs / STAGES[-1] / "hf")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "bagel-34b-v0.2")
    assert (model.lm_head.weight.float() - start.lm_head.weight.float()).abs().max() > 1e-4


def test_convert_then_a_sweep_that_shares_its_reference(cluster: Cluster, tmp_path: Path) -> None:
    write_model(tmp_path / "model", num_hidden_layers=2)
    write_pairs(tmp_path / "pairs.jsonl", 8)
    (job,) = cluster.submit("convert.sbatch", "hf-to-megatron", tmp_path / "model", tmp_path / "megatron")
    cluster.finished(job)
    tree = write_config(tmp_path, tmp_path / "megatron", train={"steps": 2})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))

    one_rank = {"JOB_NODES": 1}
    sweep = ("sweep.sbatch", tmp_path / "config.yaml", "loss.beta=0.1,0.3", "loss.lambda=5")
    reference, array = cluster.submit(*sweep, **one_rank)
    for job in (reference, array):
        cluster.finished(job)
    runs = [tmp_path / "run" / f"loss.beta={beta},loss.lambda=5" for beta in ("0.1", "0.3")]
    betas = [yaml.safe_load((run / "config.yaml").read_text())["loss"]["beta"] for run in runs]
    assert betas == [0.1, 0.3]
    assert [line["step"] for line in metrics(runs[0])] == [0, 1]
    assert metrics(runs[0]) != metrics(runs[1])
    # Nobody but the first job has computed the reference.
    assert "reference (train)" in cluster.log(reference)
    assert "reference (train)" not in cluster.log(array)
    assert json.loads((tmp_path / "run" / "reference_pass" / "heartbeat.json").read_text())["state"] == "finished"


def test_benchmark_over_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    write_model(tmp_path / "model", dtype="bfloat16")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    tree = write_config(tmp_path, tmp_path / "model", parallel={"pipeline": 2})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    words = [tmp_path / "config.yaml", "--steps", 3, "--json", tmp_path / "rates.json"]
    (job,) = cluster.submit("benchmark.sbatch", *words)
    log = cluster.finished(job)
    assert "pairs/s" in log
    assert json.loads((tmp_path / "rates.json").read_text())
