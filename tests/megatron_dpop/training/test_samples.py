"""Answers to held-out prompts at each validation are transformers' greedy ones, at several layouts."""

import json
from pathlib import Path

import pytest

from megatron_dpop.commands.main import run
from tests.distributed import run_ranks
from tests.tiny import write_config, write_model, write_pairs
from tests.training import train_all

# Keys of two ranks' layout, and the number of prompts: with one, one of two data-parallel ranks has none.
LAYOUTS = {
    "tensor": ({"tensor": 2}, 3),
    "context": ({"context": 2}, 3),
    "pipeline": ({"pipeline": 2}, 3),
    "data": ({}, 1),
}
TOKENS = 6


def greedy(folder: Path, prompt: str) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS)
    return tokenizer.decode(written[0, ids.shape[1] :].tolist(), clean_up_tokenization_spaces=False)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_are_those_of_transformers(layout: str, tmp_path: Path) -> None:
    parallel, count = LAYOUTS[layout]
    model = write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 6)
    tree = write_config(
        tmp_path,
        model,
        parallel=parallel,
        data={"validation": str(tmp_path / "pairs.jsonl"), "unscored": ["<pad>"]},
        train={"steps": 2, "validate_every": 1},
        logging={"samples": count, "sample_tokens": TOKENS},
        optimizer={"lr": 0.05},
    )
    run_ranks(train_all, 2, [tree])
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0] * count + [1] * count + [2] * count
    assert len({line["prompt"] for line in lines}) == count
    for line in lines[:count]:
        assert line["answer"] == greedy(model, line["prompt"])
        assert line["ended"] is line["answer"].endswith("<end>")
    assert [line["answer"] for line in lines[:count]] != [line["answer"] for line in lines[-count:]]


def test_samples_need_held_out_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, pairs = write_model(tmp_path / "model"), write_pairs(tmp_path / "pairs.jsonl", 6)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{path: {model}}}\ndata: {{train: {pairs}, max_tokens: 64, row_tokens: 128}}\n"
        f"train: {{steps: 2}}\noptimizer: {{warmup_steps: 1}}\nrun: {{dir: {tmp_path / 'run'}}}\n"
    )
    assert run(["train", str(config), "--dry-run", "--logging.samples", "2"]) == 2
    assert "logging.samples: there is no validation" in capsys.readouterr().err
