"""What all trials stand on: problems and pairs on disk, and a model that an SFT stage has taught the task.

The stage is the trainer's own `train` with the loss `sft`, from SmolLM2-135M-Instruct. It goes on, a few steps at a
time, until the model solves ENOUGH of some problems of its own: neither the training's nor those that trials are
measured on.
"""

import json
import random
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from dpop_base.files import write_json, write_text
from examples.arithmetic.problems import Problem, draw_problems, high_edit_pair, low_edit_pair
from examples.quickstart.model import fetch_smollm2
from megatron_dpop import train

EDITS = ("low", "high")
HELD_OUT, OWN, TRAIN_PAIRS, TAUGHT = 300, 100, 400, 12_000  # problems
SCORED_PAIRS = 60  # of the held-out problems, for token log-probabilities
ENOUGH = 0.55  # share of the stage's own problems
STEPS_AT_A_TIME, MOST_STEPS = 20, 400
FORM = {"chat_template": "none", "max_tokens": 128, "row_tokens": 2048}  # of all data here: plain text


@dataclass(frozen=True)
class Stage:
    root: Path

    @property
    def model(self) -> Path:
        """The taught model, where trials begin."""
        return self.root / "taught"

    @property
    def transformers_model(self) -> Path:
        """The same as transformers read it."""
        return self.root / "sft" / "hf"

    def pairs(self, edit: str, split: str) -> Path:
        return self.root / "data" / f"{edit}-edit-{split}.jsonl"

    @cached_property
    def problems(self) -> dict[str, list[Problem]]:
        """Disjoint, by what they are for: each is drawn once."""
        drawn = draw_problems(0)
        sizes = {"held-out": HELD_OUT, "own": OWN, "pairs": TRAIN_PAIRS, "taught": TAUGHT}
        return {name: list(islice(drawn, size)) for name, size in sizes.items()}

    def prepare(self, uv: str) -> None:
        """Does what is not done yet."""
        self.write_data()
        if not self.model.exists():
            fetch_smollm2(self.root / "model", uv)
            self._teach()
            hf_to_megatron(self.transformers_model, self.model, progress=False)

    def write_data(self) -> None:
        taught = [{"prompt": one.question, "completion": one.solution()} for one in self.problems["taught"]]
        _write(self.root / "data" / "taught.jsonl", taught)
        for split, name in (("train", "pairs"), ("validation", "held-out")):
            low, high = [], []
            for at, problem in enumerate(self.problems[name]):
                if (pair := low_edit_pair(problem, random.Random(f"{split} {at}"))) is not None:
                    low.append(asdict(pair))
                    high.append(asdict(high_edit_pair(problem, random.Random(f"{split} {at}"))))
            count = SCORED_PAIRS if split == "validation" else len(low)
            _write(self.pairs("low", split), low[:count])
            _write(self.pairs("high", split), high[:count])

    def _teach(self) -> None:
        from examples.arithmetic.measure import greedy_answers, load_model

        record = self.root / "sft.json"
        history: list[dict[str, int]] = json.loads(record.read_text()) if record.exists() else []
        own = self.problems["own"]
        while not history or history[-1]["solved"] < ENOUGH * len(own):
            steps = STEPS_AT_A_TIME * (len(history) + 1)
            if steps > MOST_STEPS:
                raise SystemExit(f"{MOST_STEPS} steps of SFT were not enough: {history[-1]}")
            print(f"\n== SFT to step {steps}", flush=True)
            run = train(self._config(steps))
            answers = greedy_answers(*load_model(run.model), [one.question for one in own])
            solved = sum(one.is_solved_by(answer.text) for one, answer in zip(own, answers, strict=True))
            history.append({"steps": steps, "solved": solved, "of": len(own)})
            write_json(record, history)
            print(f"   solves {solved} of its own {len(own)} problems; {answers[0].text!r}", flush=True)

    def _config(self, steps: int) -> dict[str, Any]:
        return {
            "model": {"path": str(self.root / "model")},
            "data": {"train": str(self.root / "data" / "taught.jsonl"), **FORM},
            "loss": {"name": "sft"},
            # Without decay, so that a stage that goes on is the same as one that was longer from the start.
            "optimizer": {"lr": 1.0e-4, "schedule": "constant", "warmup_steps": 5},
            "train": {"steps": steps, "global_batch_pairs": 32},
            "checkpoint": {"every": STEPS_AT_A_TIME, "keep": 1},
            "logging": {"tensorboard": False},
            "run": {"dir": str(self.root / "sft")},
        }


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
