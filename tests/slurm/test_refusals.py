"""What cannot run is refused before a job exists: by megatron-dpop's own checks, or by SLURM's."""

from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster
from tests.tiny import write_config, write_model, write_pairs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    write_model(folder / "model", num_hidden_layers=2)
    write_pairs(folder / "pairs.jsonl", 8)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(write_config(folder, folder / "model")))
    return path


CASES = {
    "missing model": (["train.sbatch", "--model.path", "/none"], {}, "model.path: /none is not a folder; give"),
    "ranks": (
        ["train.sbatch", "--parallel.pipeline", "2"],
        {"JOB_NODES": 1, "JOB_RANKS_PER_NODE": 3},
        "the layout needs 2 ranks, which does not divide the 3 ranks started",
    ),
    "layout": (
        ["reference.sbatch", "--parallel.tensor", "3"],
        {"JOB_RANKS_PER_NODE": 3},
        "parallel.tensor: 3 does not divide the model's",
    ),
    "one run of a sweep": (
        ["sweep.sbatch", "loss.name=dpop,dpo", "loss.lambda=5"],
        {},
        "loss.lambda has no effect on loss 'dpo'",
    ),
    "more nodes than there are": (["train.sbatch"], {"JOB_NODES": 9}, "SLURM would not take this job"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_before_a_job_exists(cluster: Cluster, config: Path, case: str) -> None:
    (script, *words), settings, reason = CASES[case]
    jobs = cluster.jobs()
    done = cluster.script(script, config, *words, **settings)
    assert done.returncode == 2, done.stdout + done.stderr
    assert reason in done.stdout + done.stderr
    assert cluster.jobs() == jobs
    assert not (config.parent / "run").exists()


def test_only_a_test(cluster: Cluster, config: Path) -> None:
    jobs = cluster.jobs()
    done = cluster.script("train.sbatch", "--test-only", config, JOB_EXTRA="--comment trial")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "layout: tensor 1 x pipeline 1 x context 1 x data 2 = 2 ranks" in done.stdout
    assert "to start at" in done.stdout
    assert "would submit: sbatch --job-name train --nodes 2 " in done.stdout
    assert "--comment trial" in done.stdout
    assert cluster.jobs() == jobs
