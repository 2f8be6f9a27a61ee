"""train.sbatch over two nodes does what plain torchrun does on one machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster, heartbeat, metrics
from tests.tiny import write_config, write_model, write_pairs

pytestmark = pytest.mark.slow


def test_two_nodes_train_and_export_as_torchrun_does(cluster: Cluster, tmp_path: Path) -> None:
    """Tensor parallel 2 within a node, pipeline parallel 2 across the nodes."""
    write_model(tmp_path / "model", dtype="bfloat16")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    tree = write_config(
        tmp_path,
        tmp_path / "model",
        parallel={"tensor": 2, "pipeline": 2},
        checkpoint={"every": 2, "export_hf": True},
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    plain = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    words = ["train", str(tmp_path / "config.yaml"), "--run.dir"]
    subprocess.run(
        [*plain, "-m", "megatron_dpop", *words, str(tmp_path / "plain")],
        check=True,
        env={**os.environ, "MEGATRON_DPOP_DEVICE": "cpu"},
    )
    (job,) = cluster.submit("train.sbatch", *words[1:], tmp_path / "slurm", JOB_RANKS_PER_NODE=2)
    log = cluster.finished(job)

    assert metrics(tmp_path / "slurm") == metrics(tmp_path / "plain") != []
    one, other = ((tmp_path / run / "hf" / "model.safetensors").read_bytes() for run in ("slurm", "plain"))
    assert one == other
    assert heartbeat(tmp_path / "slurm")["state"] == "finished"
    # Rank 0 is read in the job's log, where nobody else writes; each rank of each node has a file.
    assert "[rank 0] finished: trained 3 steps" in log
    assert "[rank 1]" not in log
    assert log.rstrip().endswith("train.sbatch: finished")
    ranks = {f"{path.parts[-3]}/{path.parts[-2]}" for path in (cluster.work / "logs").glob(f"*-{job}/**/stderr.log")}
    assert ranks == {"node-0/0", "node-0/1", "node-1/0", "node-1/1"}
