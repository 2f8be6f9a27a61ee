"""One private SLURM for all tests of this folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    search = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in COMMANDS if shutil.which(name, path=search) is None]
    if missing:
        # Where these tests must run, as in CI, a machine without SLURM is a failure.
        assert "MEGATRON_DPOP_NEEDS_SLURM" not in os.environ, f"no {missing[0]}: apt-get install slurm-wlm munge"
        pytest.skip(f"no {missing[0]} on this machine: apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # a short path, for sockets
        private = Cluster(Path(folder), tmp_path_factory.mktemp("slurm"))
        try:
            yield private
        finally:
            private.stop()
