"""What routes contribute to noise, on a small mixture: replayed ones are the base's, wherever a token stands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint_convert.models import save_small
from tests.tiny import write_model, write_pairs, write_tokenizer

TOOL = Path(__file__).parents[2] / "tools" / "route_noise.py"


def _rows(*words: object) -> dict[tuple[str, str, str], list[str]]:
    run = subprocess.run(
        [sys.executable, str(TOOL), *map(str, words)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOOL.parents[1]), "MEGATRON_DPOP_DEVICE": "cpu"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines()[4:]]
    return {(precision, setting, routes): numbers for precision, setting, routes, *numbers in cells}


@pytest.mark.slow
def test_replayed_routes_are_the_bases(tmp_path: Path) -> None:
    save_small("qwen3-moe-dense-between", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 4096}))
    write_tokenizer(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 8)
    found = _rows(tmp_path / "model", tmp_path / "pairs.jsonl", "--pairs", 8)
    assert len(found) == 14
    for (precision, setting, routes), (moved, largest, *_) in found.items():
        case = (precision, setting, routes)
        assert moved == "0.00%" or routes == "own", case
        assert float(largest) < (2e-4 if precision == "fp32" else 2.0), case
    assert found["bf16", "reference in fp32", "own"][0] != "0.00%"


@pytest.mark.slow
def test_a_dense_model_is_cut_into_experts(tmp_path: Path) -> None:
    write_model(tmp_path / "dense", max_position_embeddings=4096)
    write_pairs(tmp_path / "pairs.jsonl", 4)
    found = _rows(tmp_path / "dense", tmp_path / "pairs.jsonl", "--pairs", 4, "--cut", "--precision", "fp32")
    assert len(found) == 4
    assert {numbers[0] for numbers in found.values()} == {"0.00%"}
