"""The harness's transformers model, which says how long its work will take: before it starts, and by a bar of ours.

The harness asks the longest prompts first, so that its bar's forecast is of the slowest batches and, where answers end
at different times, of no others. Here batches, each of prompts of one length about, come in random order: what is
done stands for what is left.
"""

import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from lm_eval.models.huggingface import HFLM

from dpop_base.pace import duration
from dpop_base.progress import track

TIMED_STEPS = 6
DEFAULT_TOKENS = 256  # that an answer may have where the task says nothing: the harness's
SCORED_AT_ONCE = 8  # batches: few enough for a forecast, enough that those of one question stay together


class PacedModel(HFLM):
    """Answers and scores in batches, as its parent does."""

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        if not isinstance(self.batch_size, int) or not requests:  # "auto": the parent finds it out by itself
            return list(super().generate_until(requests, disable_tqdm))
        batches = [batch for group in _alike(requests) for batch in self._by_length(requests, group)]
        random.Random(0).shuffle(batches)
        self._foretell_answers(requests, batches)
        answers: dict[int, str] = {}
        for batch in track(batches, "answers", total=len(batches), show=not disable_tqdm):
            found = super().generate_until([requests[at] for at in batch], disable_tqdm=True)
            answers.update(zip(batch, found, strict=True))
        return [answers[at] for at in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not isinstance(self.batch_size, int) or not requests:
            return list(super()._loglikelihood_tokens(requests, disable_tqdm, override_bs))
        size = SCORED_AT_ONCE * self.batch_size
        parts = [range(at, min(at + size, len(requests))) for at in range(0, len(requests), size)]
        random.Random(0).shuffle(parts)
        scores: dict[int, tuple[float, bool]] = {}
        for number, part in enumerate(track(parts, "scores", total=len(parts), show=not disable_tqdm)):
            started = time.perf_counter()
            found = super()._loglikelihood_tokens([requests[at] for at in part], True, override_bs)
            scores.update(zip(part, found, strict=True))
            if number == 0 and len(parts) > 1:
                seconds = (time.perf_counter() - started) * len(requests) / len(part)
                _say(f"{len(requests)} completions to score: about {duration(seconds)}")
        return [scores[at] for at in range(len(requests))]

    def _by_length(self, requests: Sequence[Any], group: list[int]) -> Iterator[list[int]]:
        ordered = sorted(group, key=lambda at: -len(self.tok_encode(requests[at].args[0])))
        for start in range(0, len(ordered), self.batch_size):
            yield ordered[start : start + self.batch_size]

    def _foretell_answers(self, requests: Sequence[Any], batches: Sequence[list[int]]) -> None:
        """Says how long answering takes at most, from a few token steps of one batch."""
        prompts = [requests[at].args[0] for at in batches[0]]
        tokens, mask = self.tok_batch_encode(prompts, truncation=self.truncation)
        tokens, mask = tokens.to(self.device), mask.to(self.device)

        def seconds(steps: int) -> tuple[float, float]:
            """Times the prompts, and token steps: the middle one of these, for a machine does other things too."""
            clock = _Clock()
            self._model_generate(
                context=tokens,
                attention_mask=mask,
                max_length=tokens.shape[1] + 1 + steps,
                stop=[],
                min_new_tokens=1 + steps,
                do_sample=False,
                logits_processor=[clock],
            )
            first, *rest = (end - start for start, end in pairwise(clock.times))
            return first, statistics.median(rest)

        seconds(1)  # the first one allocates, and makes kernels for prompts and for single tokens
        first, step = seconds(TIMED_STEPS)
        most = max(request.args[1].get("max_gen_toks", DEFAULT_TOKENS) for request in requests)
        longest = len(batches) * (first + (most - 1) * step)
        _say(
            f"{len(requests)} answers of at most {most} tokens, {self.batch_size} at once, {step:.3f} s a token: "
            f"at most {duration(longest)}, less where answers end before"
        )


class _Clock:
    """Reads the time at the start and before each token is chosen."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, token_ids: Any, scores: Any) -> Any:
        self.times.append(time.perf_counter())
        return scores


def _alike(requests: Sequence[Any]) -> list[list[int]]:
    """Numbers of the requests, by how they are to be answered."""
    groups: dict[str, list[int]] = defaultdict(list)
    for at, request in enumerate(requests):
        groups[repr(request.args[1])].append(at)
    return list(groups.values())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
