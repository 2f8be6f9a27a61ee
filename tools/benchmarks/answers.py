"""Time in which `megatron-dpop eval` answers gsm_symbolic, beside its forecasts and plain `generate` of transformers.

Both answer the same batches, one after the other, and must give the same answers but for rounding.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.report import Report, markdown
from benchmarks.subcommand import subcommand

SHARES = (0.1, 0.25, 0.5)  # of the batches, after which the bar's forecast is kept
ALIKE = 0.9  # of the answers, at least: in bf16 a near tie may be decided either way


def register(subparsers: Any) -> None:
    example = "tools/benchmark.py answers runs/quickstart/dpop/hf --limit 64"
    parser = subcommand(subparsers, __name__, "eval's answers, its forecasts, and plain generate", example=example)
    parser.add_argument("model", type=Path, metavar="HF", help="Hugging Face folder")
    parser.add_argument("--limit", type=int, default=64, help="problems, the first ones (default 64)")
    parser.add_argument("--batch-size", type=int, default=8, help="answers at once (default 8)")
    parser.add_argument("--model-args", default="", metavar="KEY=VALUE,...", help="as for eval: dtype=float32")


def run(options: argparse.Namespace) -> Report:
    from megatron_dpop.evaluation import paced
    from megatron_dpop.evaluation.load import load_model
    from megatron_dpop.evaluation.subject import Subject

    subject = Subject(options.model, options.model / "eval", {})
    model = load_model(subject, backend="transformers", batch_size=options.batch_size, arguments=options.model_args)
    requests = _requests(model, options.limit)
    turns = Turns(model, [request.args[0] for request in requests], requests[0].args[1]["max_gen_toks"])
    said: list[str] = []
    with patch.object(paced, "track", turns.take), patch.object(paced, "_say", said.append):
        answers = model.generate_until(requests)
    alike = sum(turns.answers[at] == answer.strip() for at, answer in enumerate(answers)) / len(answers)
    return _report(turns, said[0], alike, str(model.model.dtype).removeprefix("torch."))


def _requests(model: Any, limit: int) -> list[Any]:
    import yaml
    from lm_eval.api.instance import Instance

    from megatron_dpop.evaluation.harness import LOCAL, TASKS
    from megatron_dpop.evaluation.problems import held_out_problems

    lines = (TASKS / f"{LOCAL}.yaml").read_text(encoding="utf-8").splitlines()
    asked = yaml.safe_load("\n".join(line for line in lines if "!function" not in line))["generation_kwargs"]
    return [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(model.apply_chat_template([{"role": "user", "content": question}]), dict(asked)),
            idx=0,
            metadata=(LOCAL, at, 1),
        )
        for at, (question, _) in enumerate(held_out_problems()[:limit])
    ]


class Turns:
    """Hands out eval's batches, and after each has plain `generate` answer it too."""

    def __init__(self, model: Any, prompts: Sequence[str], most: int) -> None:
        self.model, self.prompts, self.most = model, prompts, most
        self.ours: list[float] = []  # seconds of each batch
        self.plain: list[float] = []
        self.steps: list[int] = []  # token steps of each
        self.answers: dict[int, str] = {}

    def take(self, batches: Sequence[list[int]], title: str, **_: Any) -> Iterator[list[int]]:
        for batch in batches:
            began = time.perf_counter()
            yield batch
            self.ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            self._generate(batch)
            self.plain.append(time.perf_counter() - began)

    def _generate(self, batch: list[int]) -> None:
        import torch

        tokenizer = self.model.tokenizer
        asked = tokenizer(
            [self.prompts[at] for at in batch],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        ).to(self.model.device)
        with torch.no_grad():
            found = self.model.model.generate(
                **asked, max_new_tokens=self.most, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        answers = found[:, asked["input_ids"].shape[1] :]
        self.steps.append(answers.shape[1])
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        self.answers.update(zip(batch, (text.strip() for text in texts), strict=True))


def _report(turns: Turns, said: str, alike: float, dtype: str) -> Report:
    ours, plain, steps = sum(turns.ours), sum(turns.plain), sum(turns.steps)
    rows = [
        [name, f"{seconds:.1f}", f"{seconds / steps:.3f}", f"{seconds / plain:.2f}"]
        for name, seconds in (("eval", ours), ("generate", plain))
    ]
    forecasts = {}
    for share in SHARES:
        done = max(1, round(share * len(turns.ours)))
        forecasts[f"{share:.0%}"] = sum(turns.ours[:done]) / done * len(turns.ours)
    rows += [[f"eval's bar after {share}", f"{seconds:.1f}", "", ""] for share, seconds in forecasts.items()]
    table = markdown([dtype, "seconds", "a token step", "of generate's"], rows)
    text = f"{said}\n\n{table}\n\n{len(turns.answers)} answers in {steps} token steps, {alike:.0%} the same"
    numbers = {
        "dtype": dtype,
        "said": said,
        "eval_seconds": turns.ours,
        "generate_seconds": turns.plain,
        "token_steps": turns.steps,
        "forecast_seconds": forecasts,
        "ratio": ours / plain,
        "alike": alike,
    }
    return Report(text, numbers, ok=alike >= ALIKE)
