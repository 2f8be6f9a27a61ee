"""What the policy writes: its most likely answers to a few held-out prompts, at the run's own layout."""

import contextlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from megatron_dpop.data.examples import Lengths, TokenizedExample
from megatron_dpop.data.tokenizer import load_tokenizer
from megatron_dpop.engine.batches import RowBatch, RowSource
from megatron_dpop.engine.forward import run_rows
from megatron_dpop.models.scoring import score_next_tokens
from megatron_dpop.rows.row import ALL_ALIKE
from megatron_dpop.tracking.run_folder import write_lines
from megatron_dpop.tracking.weights_and_biases import WandbRun
from megatron_dpop.training.expert_loads import take_loads
from megatron_dpop.training.inputs import prompt_format, tokenizer_folder
from megatron_dpop.training.run import Run
from megatron_dpop.training.validation import validation_steps

_SHOWN_CHARACTERS = 200  # in the log
_NEXT = np.zeros(1, dtype=np.int32)  # stands for the token that is asked for


@dataclass
class _Texts:
    """Prompts with what has been written so far, as a dataset of completions of one unknown token."""

    texts: list[NDArray[np.int32]]
    fingerprint: str = ""
    source_names: tuple[str, ...] = ("samples",)

    @property
    def source_index(self) -> NDArray[np.int64]:
        return np.zeros(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> TokenizedExample:
        return TokenizedExample(self.texts[index], (_NEXT,), (True,), "samples", 0)

    def lengths(self) -> Lengths:
        tokens = np.array([len(text) for text in self.texts], dtype=np.int32)
        return Lengths(tokens, np.ones((len(self), 1), np.int32), np.zeros(len(self), np.int32))


class Samples:
    """The first held-out prompts that differ, and the file of what the policy answers them."""

    def __init__(self, run: Run, source: RowSource, wandb: WandbRun | None) -> None:
        """`source`: the held-out data; `wandb`: where answers go too, on rank 0."""
        self.wandb = wandb
        options = run.config.logging
        self.source, self.console, self.path = source, run.console, run.folder.samples
        self.tokens = options.sample_tokens
        dataset = source.dataset
        chosen: dict[bytes, TokenizedExample] = {}
        for at in range(len(dataset)):
            if len(chosen) == options.samples:
                break
            chosen.setdefault(dataset[at].prompt.tobytes(), dataset[at])
        self.prompts = [example.prompt for example in chosen.values()]
        self.ends = frozenset(int(example.completions[0][-1]) for example in chosen.values())  # of a turn
        folder = tokenizer_folder(run.config, run.inputs.model)
        self.tokenizer = load_tokenizer(folder, prompt_format(run.config.data)) if dist.get_rank() == 0 else None

    def write(self, step: int) -> None:
        """Answers by the weights that have taken `step` steps, in the file and the log. Every rank calls it."""
        answers = write_answers(self.source, self.prompts, tokens=self.tokens, ends=self.ends)
        take_loads(self.source.engine)  # these passes are no step's
        if self.tokenizer is None:
            return
        lines = []
        for prompt, answer in zip(self.prompts, answers, strict=True):
            text = self.tokenizer.decode(answer.tolist())
            is_whole = bool(len(answer)) and int(answer[-1]) in self.ends
            lines.append(
                {"step": step, "prompt": self.tokenizer.decode(prompt.tolist()), "answer": text, "ended": is_whole}
            )
            shown = "".join(letter if letter.isprintable() else " " for letter in text)
            self.console.say(f"sample {len(lines)} after step {step}: {shown[:_SHOWN_CHARACTERS]}")
        write_lines(self.path, [*self._before(step), *lines])
        if self.wandb is not None:
            self.wandb.log_table(step, "samples", lines)

    def _before(self, step: int) -> list[dict[str, Any]]:
        """What earlier validations left; a run that goes on writes again what came later."""
        if not self.path.exists():
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            # A disk or an editor may have spoilt a line.
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                line = json.loads(text)
                if line["step"] < step:
                    found.append(line)
        return found


def write_answers(
    source: RowSource, prompts: Sequence[NDArray[np.int32]], *, tokens: int, ends: Collection[int]
) -> list[NDArray[np.int32]]:
    """Returns at most `tokens` of each prompt's answer, up to one of `ends`. Every rank calls it and has all.

    Each token costs a forward pass over all texts that have not ended, prompts included: nothing is kept between them.
    `source`: of any data, for its settings. A text stops where a row, or the model, takes no more of it.
    """
    longest = min(source.capacity_tokens, source.engine.architecture.max_position_embeddings)
    answers: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for _ in range(tokens):
        going = [at for at in going if len(prompts[at]) + len(answers[at]) <= longest]
        if not going:
            break
        texts = [np.concatenate((prompts[at], np.array(answers[at], np.int32))) for at in going]
        rows = source.over(_Texts(texts))
        rows.weights = ALL_ALIKE  # whatever tokens of answers no loss sees
        for at, token in zip(going, _next_tokens(rows), strict=True):
            answers[at].append(token)
        going = [at for at in going if answers[at][-1] not in ends]
    return [np.array(answer, dtype=np.int32) for answer in answers]


def _next_tokens(source: RowSource) -> list[int]:
    """The most likely next token of each text."""
    engine = source.engine
    found = torch.zeros(len(source), dtype=torch.float32, device=engine.device)
    for step in range(validation_steps(source)):
        for row, tokens in run_rows(
            engine, source.rows(step, None), _collect, forward_only=True, score=score_next_tokens
        ):
            if engine.is_metrics_rank:
                found[torch.from_numpy(row.row.example_ids).to(engine.device)] = tokens
    dist.all_reduce(found)  # exact: ids below 2^24, each entered by one rank and zero on the others
    return [int(token) for token in found.tolist()]


def _collect(row: RowBatch, tokens: torch.Tensor) -> tuple[torch.Tensor, tuple[RowBatch, torch.Tensor]]:
    return tokens.sum(), (row, tokens.detach())
