"""Another trainer's config, converted, is one that `train` takes."""

from pathlib import Path

import pytest
import yaml

from megatron_dpop.commands.main import run
from megatron_dpop.config.foreign import convert
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.losses.registry import make_loss
from tests.tiny import write_model, write_pairs

# As alignment-handbook writes its DPO recipes; a comment says which values are not the usual ones.
TRL = """
model_name_or_path: {folder}/model
torch_dtype: null
dataset_mixer: {{{folder}/train: 1.0}}
dataset_splits: [train, test]
preprocessing_num_workers: 12
bf16: true
beta: 0.05
do_eval: true
eval_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {{use_reentrant: false}}
hub_model_id: mine
learning_rate: 5e-7  # text, to YAML
logging_steps: 5
lr_scheduler_type: cosine
max_length: 256
max_prompt_length: 128
num_train_epochs: 1
optim: adamw_torch
output_dir: {folder}/out
per_device_train_batch_size: 4
save_steps: 50
save_total_limit: 1
seed: 42
warmup_ratio: 0.1
"""
LLAMA_FACTORY = """
model_name_or_path: {folder}/model
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.1
pref_loss: simpo
simpo_gamma: 0.7
dataset: {folder}/pairs.jsonl
template: llama3
cutoff_len: 512
max_samples: 1000
output_dir: {folder}/out
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", dtype="bfloat16")
    write_pairs(tmp_path / "pairs.jsonl", 40)
    (tmp_path / "train").mkdir()
    write_pairs(tmp_path / "train" / "train.jsonl", 40)
    write_pairs(tmp_path / "train" / "test.jsonl", 8, seed=1)
    return tmp_path


def _converted(folder: Path, text: str, *words: str) -> dict:
    (folder / "theirs.yaml").write_text(text.format(folder=folder))
    assert run(["config", "from", str(folder / "theirs.yaml"), "--output", str(folder / "ours.yaml"), *words]) == 0
    assert run(["train", str(folder / "ours.yaml"), "--dry-run"]) == 0
    return yaml.safe_load((folder / "ours.yaml").read_text())


def test_trl(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _converted(folder, TRL, "--gpus", "4")
    said = capsys.readouterr().err
    assert "no counterpart: hub_model_id: 'mine'\n" in said
    assert "train.global_batch_pairs: 8 on each of 4 GPUs" in said
    assert found["loss"] == {"name": "dpo", "beta": 0.05}
    assert found["optimizer"] == {"lr": 5e-7, "schedule": "cosine", "warmup_share": 0.1}
    expected = {"validate_every": 100, "seed": 42, "global_batch_pairs": 32, "epochs": 1.0, "recompute": "full"}
    assert found["train"] == expected
    assert found["checkpoint"] == {"every": 50, "keep": 1}
    assert found["data"]["validation"] == [{"path": f"{folder}/train", "split": "test"}]


def test_llama_factory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _converted(folder, LLAMA_FACTORY)
    said = capsys.readouterr().err
    assert "no counterpart: max_samples: 1000\n" in said
    assert "no counterpart: template: 'llama3'\n" in said
    assert found["loss"] == {"name": "simpo", "beta": 0.1, "gamma": 0.7}
    assert found["lora"] == {"rank": 8, "alpha": 16.0, "dropout": 0.0}
    assert (found["data"]["max_tokens"], found["train"]["global_batch_pairs"]) == (512, 8)


MIXTURE = """
model_name_or_path: m
learning_rate: 2.0e-06
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
dataset_mixture:
  datasets:
    - {id: org/prefs, config: Preference, split: think, columns: [chosen, rejected], weight: 0.5}
    - {id: org/others, config: default, seed: 3}
  test_split_size: 2000
  seed: 0
"""


def test_a_mixture_as_alignment_handbook_writes_it_today() -> None:
    found = convert(yaml.safe_load(MIXTURE), gpus=1)
    assert found.config["data"]["train"] == [
        {"path": "org/prefs", "split": "think", "subset": "Preference", "weight": 0.5},
        {"path": "org/others", "split": "train"},
    ]
    assert found.config["optimizer"]["schedule"] == "cosine"
    assert found.config["optimizer"]["min_lr"] == pytest.approx(2e-7)
    assert [line.partition(":")[0] for line in found.left_out] == [
        "dataset_mixture.datasets.seed",
        "dataset_mixture.test_split_size",
        "dataset_mixture.seed",
    ]
    config_from_dict(found.config, origin="test")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("dpo_label_smoothing: 0.2\nld_alpha: 0.5", {"name": "dpo", "label_smoothing": 0.2, "ld_alpha": 0.5}),
        (
            "stage: kto\nkto_chosen_weight: 1.33",
            {"name": "kto", "desirable_weight": 1.33, "undesirable_weight": 1.0},
        ),
    ],
)
def test_the_losses_of_llama_factory(lines: str, expected: dict) -> None:
    text = f"model_name_or_path: m\ndataset: d\npref_beta: 0.3\n{lines}\n"
    found = convert(yaml.safe_load(text), gpus=1)
    assert found.config["loss"] == {"beta": 0.3, **expected}
    assert make_loss(found.config["loss"]).name == expected["name"]
    assert found.left_out == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("beta: 2.5\ngamma_beta_ratio: 0.4", {"name": "simpo", "beta": 2.5, "gamma": 1.0}),  # SimPO's own trainer
        ("loss_type: [sigmoid, sft]", {"name": "dpo", "beta": 0.1, "nll_weight": 1.0}),
        (
            "loss_type: [sigmoid, bco_pair, sft]\nloss_weights: [0.8, 0.2, 1.0]",
            {
                "name": "sum",
                "terms": [
                    {"name": "dpo", "beta": 0.1, "weight": 0.8, "nll_weight": 1.25},
                    {"name": "bco", "beta": 0.1, "weight": 0.2},
                ],
            },
        ),
    ],
)
def test_the_losses_of_trl(lines: str, expected: dict) -> None:
    found = convert(yaml.safe_load(f"model_name_or_path: m\ndataset_name: d\n{lines}\n"), gpus=1)
    assert found.config["loss"] == expected
    assert make_loss(found.config["loss"]).name == expected["name"]
    assert found.left_out == []


def test_a_file_that_names_no_loss_is_not_silently_one_for_dpo() -> None:
    """The handbook's recipes for ORPO have the same keys as those for DPO."""
    found = convert({"model_name_or_path": "m", "dataset_name": "d", "beta": 0.05}, gpus=1)
    assert any(line.startswith("loss.name: dpo; the file names no loss_type") for line in found.assumed)


@pytest.mark.parametrize(
    ("lines", "config", "left_out"),
    [
        ("use_peft: true\nlora_target_modules: [q_proj, k_proj, v_proj, o_proj]", ["linear_qkv", "linear_proj"], []),
        ("finetuning_type: lora\nlora_target: q_proj,down_proj", ["linear_qkv", "linear_fc2"], []),
        ("use_peft: true\nlora_target_modules: [q_proj, lm_head]", None, ["lora_target_modules"]),
    ],
)
def test_the_targets_of_adapters(lines: str, config: list[str] | None, left_out: list[str]) -> None:
    found = convert(yaml.safe_load(f"model_name_or_path: m\ndataset: d\n{lines}\n"), gpus=1)
    assert found.config["lora"].get("targets") == config
    assert [line.partition(":")[0] for line in found.left_out] == left_out


def test_modules_that_megatron_fuses_with_the_chosen_ones_are_named() -> None:
    lines = "use_peft: true\nlora_target_modules: [q_proj, v_proj, down_proj]"
    found = convert(yaml.safe_load(f"model_name_or_path: m\ndataset: d\n{lines}\n"), gpus=1)
    (line,) = [line for line in found.assumed if line.startswith("lora.targets")]
    assert "linear_qkv, linear_fc2, with one A for those that Megatron fuses; k_proj too" in line


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").touch()
    theirs = f"model_name_or_path: m\ndataset_name: {tmp_path / 'pairs.jsonl'}\neval_strategy: epoch\n"
    found = convert(yaml.safe_load(theirs), gpus=1)
    assert found.config["data"]["train"] == [{"path": str(tmp_path / "pairs.jsonl")}]
    assert "validation" not in found.config["data"]
    assert any(line.startswith("dataset_name: a file has no splits") for line in found.left_out)


def test_when_they_validate_and_save() -> None:
    theirs = "model_name_or_path: m\ndataset_name: d\neval_strategy: epoch\nsave_strategy: no\noptim: adamw_bnb_8bit\n"
    found = convert(yaml.safe_load(theirs), gpus=1)
    assert found.config["data"]["validation"] == [{"path": "d", "split": "test"}]
    assert [line.partition(":")[0] for line in found.left_out] == ["eval_strategy", "save_strategy", "optim"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\n", "neither a TRL nor a LLaMA-Factory config"),
        ("stage: ppo\n", "stage: 'ppo' is no preference training"),
        ("model_name_or_path: m\nloss_type: [sigmoid, aot]\n", "loss 'aot' has no counterpart"),
        ("model_name_or_path: m\nloss_type: [sigmoid, sft]\nloss_weights: [1]\n", "are not one for each of loss_type"),
        (
            "model_name_or_path: m\nstage: dpo\nfinetuning_type: freeze\n",
            "finetuning_type: 'freeze' has no counterpart",
        ),
        ("model_name_or_path: m\nbeta: high\n", "beta: 'high' is no number"),
        ("- 1\n", "a mapping of keys, not list"),
        ("model_name_or_path: m\ndataset_mixture: {datasets: [1]}\n", "1 names no dataset; give its id"),
        ("a:\n\tb: 1\n", "indented by a tab"),
    ],
)
def test_what_cannot_be_converted(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "theirs.yaml").write_text(text)
    assert run(["config", "from", str(tmp_path / "theirs.yaml")]) == 2
    assert says in capsys.readouterr().err
