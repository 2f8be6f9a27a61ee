"""`megatron-dpop plan` as a user runs it: from a config.json alone, or over data that can be read."""

import json
from pathlib import Path

import pytest
import yaml

from megatron_dpop.commands.main import run
from tests.tiny import write_config, write_model, write_pairs

EXAMPLE = Path(__file__).parents[3] / "examples" / "plan"


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A config beside nothing but Qwen-72B's config.json."""
    tree = yaml.safe_load((EXAMPLE / "qwen-72b.yaml").read_text())
    tree["model"]["path"] = str(EXAMPLE / "qwen-72b")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def _json(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert run(["plan", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(["plan", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_plans_a_72b_from_its_config_alone(qwen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _json(capsys, qwen, "--gpus", 64)
    assert plan["parameters"] == 72_287_920_128
    assert (plan["devices"], plan["layout"]["data"]) == (64, 2)
    memory = plan["memory_bytes"]
    assert memory["total"] == pytest.approx(
        sum(memory[part] for part in ("weights", "gradients", "optimizer", "activations", "buffers"))
        + max(memory["logprob_chunk"], memory["backward"])
    )
    assert plan["lengths"].startswith("assumed")
    assert plan["fewest"]["LoRA"]["devices"]["devices"] < plan["fewest"]["full-parameter"]["devices"]["devices"]
    assert run(["plan", str(qwen), "--gpus", "64"]) == 0
    shown = capsys.readouterr().out
    assert "72.3B parameters on 64 H100-80GB: tensor 8, pipeline 4, data 2" in shown
    assert f"{plan['seconds']['step']:.3f}" in shown


def test_overrides_and_lengths_change_the_plan(qwen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _json(capsys, qwen, "--device", "h200", "--parallel.context", 2, "--pair", "200,300,0")
    assert plan["hardware"]["name"] == "H200"
    assert plan["layout"]["context"] == 2
    assert plan["workload"]["unshared"]["tokens"] == 2 * (200 + 299)
    longer = _json(capsys, qwen, "--device", "h200", "--pair", "200,300,299")
    assert longer["workload"]["packed"]["tokens"] < plan["workload"]["packed"]["tokens"]


def test_measures_data_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    for weights in (tmp_path / "model").glob("*.safetensors"):
        weights.unlink()  # only the shape and the tokenizer are needed
    write_pairs(tmp_path / "pairs.jsonl", 12)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(write_config(tmp_path, tmp_path / "model")))
    plan = _json(capsys, path)
    assert plan["lengths"] == "measured on the 12 examples of data.train"
    assert 1 < plan["workload"]["packed"]["tokens"] < plan["workload"]["unshared"]["tokens"] < 80
    assert not (tmp_path / "run").exists()


def test_search_and_weak_scaling(qwen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, qwen, "--gpus", 64, "--search")["plans"]
    assert {plan["devices"] for plan in found} == {64}
    assert {(plan["layout"]["lora"] is not None, plan["layout"]["fp8"]) for plan in found} == {
        (lora, fp8) for lora in (False, True) for fp8 in (False, True)
    }
    scaled = _json(capsys, qwen, "--weak-scaling", "32,64")["plans"]
    assert [plan["workload"]["examples"] for plan in scaled] == [512, 1024]


def test_a_runs_hours_are_its_steps_and_one_reference_pass_over_new_pairs(
    qwen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = _json(capsys, qwen, "--gpus", 64, "--price", 2.5, "--train.steps", 300)
    run_, flops, step = plan["run"], plan["flops_per_example"], plan["seconds"]["step"]
    assert (run_["steps"], run_["examples"], run_["devices"]) == (300, 300 * 512, 64)
    assert run_["training"] == pytest.approx(300 * step)
    assert run_["reference"] == pytest.approx(300 * step * flops["reference"] / flops["training"])
    assert run_["cost"] == pytest.approx(64 * (run_["training"] + run_["reference"]) / 3600 * 2.5)
    without = _json(capsys, qwen, "--gpus", 64, "--train.steps", 300, "--loss.name", "simpo")["run"]
    assert (without["reference"], "cost" in without) == (0, False)
    assert run(["plan", str(qwen), "--gpus", "64", "--train.epochs", "2"]) == 0
    assert "hours of the run: not known. train.epochs" in capsys.readouterr().out


def test_hours_over_data_that_can_be_read_count_each_pair_once_and_every_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    write_pairs(tmp_path / "held.jsonl", 6, seed=5)
    tree = write_config(tmp_path, tmp_path / "model")
    tree["data"]["validation"] = str(tmp_path / "held.jsonl")
    tree["train"] = {"epochs": 3, "global_batch_pairs": 4, "validate_every": 4}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    plan = _json(capsys, path)
    run_, flops = plan["run"], plan["flops_per_example"]
    forward = plan["seconds"]["step"] / 4 * flops["reference"] / flops["training"]
    assert run_["steps"] == 9
    assert run_["reference"] == pytest.approx((12 + 6) * forward)
    assert run_["validation"] == pytest.approx(6 * forward * 3)  # after 4 and 8 steps, at the end; before, it is known
    other = _json(capsys, path, "--reference.model", tmp_path / "model")["run"]
    assert other["reference"] == pytest.approx((12 + 6) * forward)
    assert other["validation"] == pytest.approx(6 * forward * 4)  # before, too: the policy is not the reference


def test_a_recipe_names_its_stages_and_sums_their_hours(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = EXAMPLE.parent / "recipes" / "smaug-34b.yaml"
    stages = _json(capsys, recipe, "--price", 2)["stages"]
    assert [stage["kind"] for stage in stages] == ["SFT", *["preference"] * 6]
    assert stages[0]["run"]["reference"] == 0
    tokens = [stage["workload"]["packed"]["tokens"] for stage in stages]
    assert tokens == [90 + 189, *[90 + 95 + 2 * 94] * 6]  # one answer, then two that share 95 tokens
    assert {stage["devices"] for stage in stages} == {32}
    assert run(["plan", str(recipe), "--price", "2"]) == 0
    out = capsys.readouterr().out
    hours = sum(stage["run"]["seconds"] for stage in stages) / 3600
    assert f"{hours:.2f} hours in all" in out
    assert f"{64 * hours:,.2f} at 2 a GPU-hour" in out
    for stage in ("1-sft", "7-dpo-truthy"):
        assert stage in out
    assert "conversion" in out
    shorter = _json(capsys, recipe, "--train.steps", 10, "--gpus", 64)["stages"]
    assert {(stage["run"]["steps"], stage["devices"]) for stage in shorter} == {(10, 64)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("runs: [{name: a}]", "config.model.path is missing"),
        ("{config: {model: {path: m}, run: {dir: r}}, stages: []}", "stages is not a list"),
        ("{config: {model: {path: m}, run: {dir: r}}, stages: [{loss: {}}]}", "stages is not a list"),
        ("{config: {model: {path: m}, run: {dir: r}}, gpus: many, runs: [{name: a}]}", "gpus: many"),
    ],
)
def test_a_broken_recipe_is_one_line(text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert told in _refused(capsys, path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--parallel.pipeline", "2"), ("needs", "79.1", "nearest layout that fits")),
        (("--gpus", "40"), ("--gpus", "40", "32")),
        (("--gpus", "4", "--parallel.pipeline", "1", "--parallel.tensor", "4"), ("needs", "nearest")),
        (("--parallel.tensor", "3"), ("parallel.tensor", "3", "64 attention heads")),
        (("--parallel.pipeline", "7"), ("parallel.pipeline", "7", "80 layers")),
        (("--data.row_tokens", "4100", "--parallel.context", "4"), ("data.row_tokens", "4100", "multiple")),
        (("--gpus", "0"), ("--gpus", "0", "1 or more")),
        (("--optimizer.offload", "true", "--optimizer.state", "bf16"), ("optimizer.offload", "optimizer.state: bf16")),
        (("--parallel.overlap_tensor", "true", "--parallel.sequence", "false"), ("parallel.overlap_tensor", "leave")),
        (("--pair", "2000,3000,0"), ("data.row_tokens", "4096", "7998", "raise it")),
        (("--pair", "1,2"), ("--pair", "1,2", "PROMPT,COMPLETION,COMMON")),
        (("--pair", "9,5,6"), ("--pair", "9,5,6", "at most COMPLETION")),
        (("--weak-scaling", "8,x"), ("--weak-scaling", "8,x")),
        (("--search", "--gpus", "1"), ("--gpus", "1 H100-80GB", "no layout fits")),
        (("--price", "-1"), ("--price", "-1")),
        (("--price", "2", "--search"), ("--price", "leave it out")),
        (("--model.path", "nowhere"), ("model.path", "nowhere")),
    ],
)
def test_bad_input_is_one_line(
    qwen: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: tuple[str, ...]
) -> None:
    message = _refused(capsys, qwen, *words)
    for part in told:
        assert part in message


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A config of two ranks whose model has a shape and a tokenizer alone."""
    write_model(tmp_path / "model")
    for weights in (tmp_path / "model").glob("*.safetensors"):
        weights.unlink()
    write_pairs(tmp_path / "pairs.jsonl", 12)
    tree = write_config(tmp_path, tmp_path / "model")
    tree["parallel"] = {"tensor": 2}
    tree["train"] = {"steps": 50, "global_batch_pairs": 4}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
def test_plans_this_machine_at_a_rate_that_it_measures(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _json(capsys, small, "--device", "cpu", "--price", 3)
    measured, run_ = plan["measured"], plan["run"]
    assert (measured["layers"], plan["layout"]["tensor"]) == (4, 2)
    assert measured["passes"] >= 1
    assert measured["seconds"] > 0
    assert measured["flops_per_second"] > 0
    assert plan["step_seconds"] > measured["optimizer_seconds"] > 0
    assert run_["training"] == pytest.approx(50 * plan["step_seconds"])
    assert 0 < run_["reference"] < 3 * plan["step_seconds"]  # twelve pairs, once, forward
    assert run_["cost"] == pytest.approx(run_["seconds"] / 3600 * 3)
    assert not (small.parent / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--gpus", "2"), ("--device cpu", "leave out --gpus")),
        (("--search",), ("--device cpu", "leave out --gpus and searches")),
        (("--train.global_batch_pairs", "1000000", "--data.row_tokens", "1000000000"), ("GiB on this machine",)),
    ],
)
def test_what_this_machine_cannot_is_one_line(
    small: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: tuple[str, ...]
) -> None:
    message = _refused(capsys, small, "--device", "cpu", *words)
    for part in told:
        assert part in message
