"""The whole path in one command: a real model, real pairs, DPO and DPOP, and a report that compares them.

Each stage is a command that works by itself too; it is printed before it runs. A stage whose result exists is
skipped, and a training run that was stopped goes on where it was.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from model import fetch_smollm2

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
LOSSES = ("dpo", "dpop")
SPLITS = ("train", "validation")

# A step of short pairs takes two CPU cores seconds.
SHORT = ("--where", "prompt_characters <= 240", "--where", "chosen_characters <= 120")

# How far an exported model's fp32 logits may lie from those of the trained one, of the largest.
FP32_LIMIT = 1e-4


class Quickstart:
    def __init__(self, run: Path, model: str | None) -> None:
        self.run = run
        self.given_model = model
        self.problems = run / "problems"
        self.train, self.validation = (pairs_file(run, split) for split in SPLITS)
        self.base = run / "model"
        self.megatron = run / "megatron"

    def execute(self) -> None:
        started = time.monotonic()
        self._stage("1/6 model: SmolLM2-135M-Instruct as a Hugging Face folder", self._fetch_model)
        self._stage("2/6 pairs: worked problems, one intermediate result corrupted", self._make_pairs)
        self._stage("3/6 convert: Hugging Face to Megatron (torch_dist)", self._convert)
        self._stage("4/6 train: DPO, then DPOP, on the same pairs in the same order", self._train)
        self._stage("5/6 export: the trained models as Hugging Face folders, compared with Megatron's", self._compare)
        self._stage("6/6 report: what the two losses did", self._report)
        print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Open {self.run / 'report.html'}.")
        print("\n".join(next_steps(self.run, self.base)))

    def _stage(self, title: str, work: Callable[[], None]) -> None:
        print(f"\n== {title}", flush=True)
        started = time.monotonic()
        work()
        print(f"   {time.monotonic() - started:.0f} s", flush=True)

    def _fetch_model(self) -> None:
        if self.given_model:
            from megatron_dpop.training.inputs import resolve_model

            self.base = resolve_model(self.given_model, key="MODEL")
            print(f"   {self.base}")
        else:
            fetch_smollm2(self.base)

    def _make_pairs(self) -> None:
        if not (self.problems / "datasheet.json").exists():
            sizes = ("--train", 400, "--validation", 200)
            command("megatron-dpop", "data", "make", "gsm-symbolic", "--output", self.problems, *sizes)
        for split, target in zip(SPLITS, (self.train, self.validation), strict=True):
            if not target.exists():
                source = self.problems / f"{split}.parquet"
                command("megatron-dpop", "data", "filter", source, *SHORT, "--output", target)

    def _convert(self) -> None:
        command("checkpoint-convert", "hf-to-megatron", self.base, self.megatron)

    def _config(self, loss: str) -> list[object]:
        return [
            HERE / "config.yaml",
            f"--model.path={self.megatron}",
            f"--data.train={self.train}",
            f"--data.validation={self.validation}",
            f"--reference.cache={self.run / 'reference'}",
            f"--loss.name={loss}",
            *(["--loss.beta=0.3"] if loss == "dpo" else []),
            f"--run.dir={self.run / loss}",
        ]

    def _train(self) -> None:
        """The first run leaves the reference's log-probabilities for the second."""
        for loss in LOSSES:
            command("megatron-dpop", "train", *self._config(loss))

    def _compare(self) -> None:
        """`train` has exported already, with `checkpoint-convert megatron-to-hf`, which finds nothing left to do."""
        runs = [self.run / loss for loss in LOSSES]
        for run in runs:
            command("checkpoint-convert", "megatron-to-hf", run / "checkpoints", run / "hf")
        pair = first_pair(self.validation)
        words = [sys.executable, HERE / "compare.py", f"{pair['prompt']}\n{pair['chosen']}", *runs]
        found = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        for loss, differences in zip(LOSSES, json.loads(found.stdout.splitlines()[-1]).values(), strict=True):
            fp32, bf16, rounding = (differences[name] for name in ("fp32", "bf16", "bf16_rounding"))
            print(
                f"   {loss}: transformers' and Megatron's logits differ by {fp32:.1e} of the largest in fp32; "
                f"by {bf16:.1%} in bf16 (transformers' own rounding: {rounding:.1%})"
            )
            if fp32 > FP32_LIMIT:
                raise SystemExit(f"the exported {loss} model is not the trained one")

    def _report(self) -> None:
        from summary import summarise

        summarise(self.run, self.base, first_pair(self.validation))


def pairs_file(run: Path, split: str) -> Path:
    return run / "pairs" / f"{split}.jsonl"


def next_steps(run: Path, model: Path) -> list[str]:
    """What to try now: how to have the commands, and three that work on what is there, from this very folder."""
    train, validation = (pairs_file(run, split) for split in SPLITS)
    config = shlex.join([str(HERE / "config.yaml"), f"--model.path={model}", f"--data.train={train}"])
    rest = shlex.join(
        [
            f"--data.validation={validation}",
            f"--reference.cache={run / 'reference'}",
            "--loss.name=ipo",
            f"--run.dir={run / 'ipo'}",
        ]
    )
    runs = [str(run / loss) for loss in LOSSES]
    page = ["--pairs", str(validation), "--out", str(run / "tokens.html")]
    return [
        "",
        "Next, to be copied: the commands by name; each token's likelihood; a third loss; all three in a report.",
        "",
        f"source {shlex.quote(str(BIN / 'activate'))}",
        shlex.join(["megatron-dpop", "analyze", *runs, *page]),
        f"megatron-dpop train {config} {rest}",
        shlex.join(["megatron-dpop", "report", *runs, str(run / "ipo"), "--output", str(run / "three.html")]),
    ]


def first_pair(file: Path) -> dict[str, str]:
    with file.open(encoding="utf-8") as lines:
        pair: dict[str, str] = json.loads(next(lines))
    return pair


def command(name: str, *words: object) -> None:
    """Runs one of the project's commands, shown as a user would type it; stops the quickstart if it fails."""
    line = [str(word) for word in words]
    print(f"   $ {shlex.join([name, *line])}", flush=True)
    finished = subprocess.run([BIN / name, *line], check=False)
    if finished.returncode:
        raise SystemExit(finished.returncode)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="folder of everything that is made")
    parser.add_argument("--model", help="a Hugging Face folder or a model on the hub, instead of SmolLM2")
    arguments = parser.parse_args()
    Quickstart(arguments.run, arguments.model).execute()
