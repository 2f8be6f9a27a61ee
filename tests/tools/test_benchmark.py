"""The benchmarks run, and what they compare is alike: ours and TRL's trainer on a tiny model, in fp32."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from benchmark import main
from benchmarks.compare import summary
from benchmarks.contenders import ContenderRun, Task

from tests.tiny import write_config, write_model, write_pairs

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_model(folder / "model", num_hidden_layers=2)
    write_pairs(folder / "pairs.jsonl", 12)
    return folder


@pytest.mark.slow
def test_ours_and_trls_train_to_the_same_losses(world: Path) -> None:
    pytest.importorskip("trl")
    words = [str(world / "model"), str(world / "pairs.jsonl"), "--precision", "fp32", "--threads", "1"]
    words += ["--max-tokens", "64", "--row-tokens", "128"]
    found = world / "compare.json"
    code = main(["compare", *words, "--steps", "4", "--batch-pairs", "4", "--json", str(found)])
    numbers = json.loads(found.read_text())["numbers"]
    assert code == 0
    assert list(numbers) == ["ours", "TRL, default", "TRL, precomputed, 4 pairs at once"]
    losses = [outcome["losses"] for outcome in numbers.values()]
    assert all(len(steps) == 4 for steps in losses)
    assert len({round(loss, 3) for loss in losses[0]}) > 1, "nothing was learnt, so equal losses show nothing"
    for outcome in numbers.values():
        assert outcome["loss_difference"] < 1e-4
        assert min(outcome["step_seconds"]) > 0
        assert outcome["peak_bytes"] > 2**20
    # The same pairs; we read a shared prefix once.
    ours, trl, _ = (outcome["tokens"] for outcome in numbers.values())
    assert all(mine < theirs for mine, theirs in zip(ours, trl, strict=True))


@pytest.mark.slow
def test_made_up_pairs_are_trained_on(world: Path) -> None:
    words = [str(world / "model"), "fixed:8,12,4", "--precision", "fp32", "--threads", "1", "--row-tokens", "128"]
    assert main(["compare", *words, "--steps", "2", "--batch-pairs", "2", "--contenders", "ours"]) == 0


# What each benchmark is given here, besides the model, the pairs and a config.
SMALL = {
    "train": ["{config}", "--steps", "2"],
    "checkpoint": ["{config}", "--repeats", "1"],
    "data": ["{model}", "{pairs}", "--counts", "20", "--batch-pairs", "2"],
    "logprob": ["--device", "cpu", "--scores", "8", "--hidden", "16", "--vocab", "128", "--repeats", "1"],
    "attention": ["--device", "cpu", "--pairs-a-row", "1", "--heads", "2", "--kv-heads", "1", "--repeats", "1"],
    "convert": ["--shapes", "tiny", "--folder", "{scratch}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", SMALL)
def test_a_benchmark_measures_something(benchmark: str, world: Path, tmp_path: Path) -> None:
    pairs = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
    tree = write_config(world, world / "model", run={"dir": str(tmp_path / "run")})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    places = {
        "{config}": tmp_path / "config.yaml",
        "{model}": world / "model",
        "{pairs}": tmp_path / "pairs.parquet",
        "{scratch}": tmp_path / "scratch",
    }
    words = [str(places.get(word, word)) for word in SMALL[benchmark]]
    command = [sys.executable, "benchmark.py", benchmark, *words, "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=TOOLS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["numbers"]
    numbers = [value for part in ([found] if isinstance(found, dict) else found) for value in part.values()]
    assert any(isinstance(value, float) and value > 0 for value in numbers)


@pytest.mark.slow
def test_eval_and_plain_generate_give_the_same_answers(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs megatron-dpop[eval]")
    model = write_model(tmp_path / "model", num_hidden_layers=1, max_position_embeddings=1024)
    found = tmp_path / "answers.json"
    words = ["answers", str(model), "--limit", "5", "--batch-size", "2", "--model-args", "dtype=float32"]
    assert main([*words, "--json", str(found)]) == 0
    numbers = json.loads(found.read_text())["numbers"]
    assert numbers["alike"] == 1
    assert len(numbers["eval_seconds"]) == len(numbers["generate_seconds"]) == len(numbers["token_steps"]) == 3
    assert numbers["said"].startswith("5 answers of at most 320 tokens, 2 at once")
    assert numbers["forecast_seconds"].keys() == {"10%", "25%", "50%"}


def test_megatron_is_not_imported_before_a_device_is_chosen() -> None:
    """Some of its modules ask for the device while they are imported."""
    code = "import sys, benchmark; sys.exit(any(name.startswith('megatron.core') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=TOOLS, check=False).returncode == 0


def test_other_losses_are_not_compared() -> None:
    task = Task(Path(), "pairs", 2, 8, "fp32", 1, 64, 128, Path())
    same, other = (ContenderRun([1.0, 1.0], [1.0, 1.0], [0.69, loss], 2**30, 0.0, [10, 10]) for loss in (0.5, 0.6))
    assert summary(task, {"ours": same, "theirs": same}).ok
    report = summary(task, {"ours": same, "theirs": other})
    assert not report.ok
    assert "NOT THE SAME LOSSES" in report.text
