"""What all trials stand on: problems and pairs on disk, and a model that an SFT stage has taught the task.

The stage is the trainer's own `train` with the loss `sft`, from SmolLM2-135M-Instruct, long enough for the model to
solve half of the problems or more and short enough for it not to solve all.
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
# Of the SFT stage: first at a constant rate, then, begun anew from there, falling to zero.
CONSTANT_STEPS, FALLING_STEPS, TEACHING_RATE = 80, 60, 5.0e-4
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

    def prepare(self) -> None:
        """Does what is not done yet."""
        self.write_data()
        if not self.model.exists():
            fetch_smollm2(self.root / "model")
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

        constant = train(self._config("sft-constant", self.root / "model", "constant", CONSTANT_STEPS, seed=0))
        falling = train(self._config("sft", constant.model, "linear", FALLING_STEPS, seed=1))
        own = self.problems["own"]
        answers = greedy_answers(*load_model(falling.model), [one.question for one in own])
        solved = sum(one.is_solved_by(answer.text) for one, answer in zip(own, answers, strict=True))
        print(f"SFT: {solved} of {len(own)} problems are solved; the first is answered {answers[0].text!r}", flush=True)
        write_json(
            self.root / "sft.json",
            {"steps": CONSTANT_STEPS + FALLING_STEPS, "rate": TEACHING_RATE, "solved": solved, "of": len(own)},
        )

    def _config(self, name: str, model: Path, schedule: str, steps: int, *, seed: int) -> dict[str, Any]:
        return {
            "model": {"path": str(model)},
            "data": {"train": str(self.root / "data" / "taught.jsonl"), **FORM},
            "loss": {"name": "sft"},
            "optimizer": {"lr": TEACHING_RATE, "schedule": schedule, "warmup_steps": 10},
            "train": {"steps": steps, "global_batch_pairs": 32, "seed": seed},
            "checkpoint": {"every": 40, "keep": 1},
            "logging": {"tensorboard": False},
            "run": {"dir": str(self.root / name)},
        }


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
