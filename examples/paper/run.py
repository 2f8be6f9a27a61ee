"""The paper's experiments: each group is one command, and `all` of them take under an hour on two cores.

    python examples/paper/run.py all
    python examples/paper/run.py accuracy    # of a task, before and after: examples/paper/accuracy.py; not in `all`

A run that is finished is passed over, so the command may be stopped and given again. Model and pairs are made where
none are given. Afterwards `megatron-dpop analyze` looks at every token, and figures.py draws what docs/paper/ shows.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "quickstart"))
sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments import GROUPS, Experiment
from model import fetch_smollm2
from pairs import make_high_edit, make_low_edit

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
TRAIN_PAIRS, VALIDATION_PAIRS = 240, 33  # a question of four choices gives three
MAKERS = {"low-edit": make_low_edit, "high-edit": make_high_edit}


class Paper:
    def __init__(self, root: Path, config: Path, model: Path | None, pairs: Path | None) -> None:
        self.root = root
        self.config = config
        self.given_model = model
        self.model = root / "megatron"
        self.pairs = pairs or root / "pairs"
        self.is_given_pairs = pairs is not None

    def execute(self, groups: list[str]) -> None:
        self.prepare()
        wanted = list(dict.fromkeys(one for group in groups for one in GROUPS[group]))
        for at, experiment in enumerate(wanted, start=1):
            print(f"\n== {at}/{len(wanted)} {experiment.name}", flush=True)
            self.train(experiment)
        for kind in MAKERS:
            finished = [self.folder(one) for one in self.known() if one.pairs == kind and is_finished(self.folder(one))]
            if finished:
                print(f"\n== {kind}: {len(finished)} runs, token by token", flush=True)
                self.analyze(kind, finished)

    def prepare(self) -> None:
        source = self.given_model or self.root / "model"
        if self.given_model is None:
            fetch_smollm2(source)
        command("checkpoint-convert", "hf-to-megatron", source, self.model)
        for kind, make in MAKERS.items():
            if not self.is_given_pairs and not (self.pairs / kind / "datasheet.json").exists():
                make(self.pairs / kind, train=TRAIN_PAIRS, validation=VALIDATION_PAIRS, seed=0)

    def known(self) -> list[Experiment]:
        return list(dict.fromkeys(one for group in GROUPS.values() for one in group))

    def folder(self, experiment: Experiment) -> Path:
        return self.root / "runs" / experiment.name

    def train(self, experiment: Experiment) -> None:
        folder, pairs = self.folder(experiment), self.pairs / experiment.pairs
        if is_finished(folder):
            print("   finished before", flush=True)
            return
        started = time.monotonic()
        command(
            "megatron-dpop",
            "train",
            self.config,
            f"--model.path={self.model}",
            f"--data.train={pairs / 'train.parquet'}",
            f"--data.validation={pairs / 'validation.parquet'}",
            # Runs that see the same pairs in the same rows share a reference.
            f"--reference.cache={self.root / 'reference' / f'{experiment.pairs}-seed{experiment.seed}'}",
            f"--run.dir={folder}",
            *experiment.overrides(),
        )
        # The exported weights are all that is asked of a finished run; its optimizer state takes six times their room.
        shutil.rmtree(folder / "checkpoints")
        print(f"   {time.monotonic() - started:.0f} s", flush=True)

    def analyze(self, kind: str, runs: list[Path]) -> None:
        results = self.root / "analysis" / f"{kind}.json"
        words = ["--reference", self.model, "--pairs", self.pairs / kind / "validation.parquet"]
        words += ["--out", results.with_suffix(".html")]
        results.parent.mkdir(exist_ok=True)
        text = command("megatron-dpop", "analyze", *runs, *words, "--json", capture=True)
        results.write_text(text, encoding="utf-8")


def run_accuracy(root: Path, workers: int) -> None:
    """The trials of accuracy.py; accuracy_page.py makes their page."""
    from examples.arithmetic.bench import lay_out, run_trials
    from examples.arithmetic.results import Results
    from examples.paper.accuracy import trials

    run_trials(trials(), lay_out(root), Results(root / "results.jsonl"), workers=workers)


def is_finished(run: Path) -> bool:
    """Trained and exported: `train` removes the checkpoints of such a run last."""
    return (run / "hf").is_dir() and not (run / "checkpoints").exists()


def command(name: str, *words: object, capture: bool = False) -> str:
    """Runs one of the project's commands, shown as a user would type it; ends with its exit code where it fails."""
    line = [str(word) for word in words]
    print(f"   $ {name} {' '.join(line)}", flush=True)
    done = subprocess.run([BIN / name, *line], check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", nargs="+", choices=[*GROUPS, "all", "accuracy"], help="experiments to run")
    parser.add_argument("--root", type=Path, default=Path("runs/paper"), help="folder of everything that is made")
    parser.add_argument("--config", type=Path, default=HERE / "smollm2.yaml", help="what all runs have in common")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder, instead of SmolLM2-135M")
    parser.add_argument("--pairs", type=Path, help="folder with low-edit/ and high-edit/, instead of made ones")
    parser.add_argument(
        "--arithmetic", type=Path, default=Path("runs/arithmetic"), help="folder of `accuracy`, shared with the arena"
    )
    parser.add_argument("--workers", type=int, default=2, help="trials of `accuracy` at once, each on one core")
    given = parser.parse_args()
    groups = list(GROUPS) if "all" in given.group else [group for group in given.group if group in GROUPS]
    if "accuracy" in given.group:
        run_accuracy(given.arithmetic, given.workers)
    if groups:
        Paper(given.root, given.config, given.model, given.pairs).execute(groups)
