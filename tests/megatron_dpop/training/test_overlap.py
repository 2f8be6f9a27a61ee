"""Communication behind computation changes no number, whatever bucket the output layer's weight is in."""

from functools import partial
from pathlib import Path

import pytest

from tests.distributed import run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_here

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overlap")
    write_model(folder / "untied")
    write_model(folder / "tied", tie_word_embeddings=True)
    write_pairs(folder / "pairs.jsonl", 11)
    return folder


def _trained(tree: dict, bucket_entries: int | None) -> list[dict]:
    from megatron_dpop.engine import engine

    if bucket_entries is not None:  # models that need several are not tiny
        config = engine.DistributedDataParallelConfig
        engine.DistributedDataParallelConfig = partial(config, bucket_size=bucket_entries)
    return train_here(tree)


@pytest.mark.parametrize(
    ("model", "parallel", "ranks", "bucket_entries"),
    [
        ("tied", {"pipeline": 2}, 2, None),  # the shared weight always has a bucket of its own
        ("untied", {}, 2, 6000),
    ],
)
def test_overlap_changes_nothing(
    world: Path, model: str, parallel: dict[str, int], ranks: int, bucket_entries: int | None
) -> None:
    runs = []
    for overlap in (False, True):
        name = f"{model}_{ranks}_{bucket_entries}_{overlap}"
        tree = write_config(
            world,
            world / model,
            parallel={**parallel, "overlap": overlap},
            train={"steps": 4, "global_batch_pairs": 8},
            run={"dir": str(world / name)},
        )
        runs.append(run_ranks(_trained, ranks, tree, bucket_entries)[0])
    for plain, overlapped in zip(*runs, strict=True):
        for key in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            assert overlapped[key] == pytest.approx(plain[key], rel=1e-5, abs=1e-7), key
