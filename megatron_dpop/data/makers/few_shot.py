"""Prompts for base models: solved examples before the question, in the words of lm-evaluation-harness's tasks.

GSM8K and ARC ask `Question: ...` and `Answer:`; HellaSwag lets a text go on as it stands. A task and its answer are a
space apart, and examples a blank line.
"""

import random
from collections.abc import Mapping, Sequence

from dpop_base.errors import UserError

from .pairs_file import Pair

_ASKED = "Question: {}\nAnswer:"
FORMS: Mapping[str, str] = {"metamath": _ASKED, "arc": _ASKED, "hellaswag": "{}"}
SEPARATOR = "\n\n"


def with_examples(splits: Mapping[str, Sequence[Pair]], rule: str, count: int, seed: int) -> dict[str, list[Pair]]:
    """Returns the pairs of each split with prompts in the rule's form, after `count` solved training questions.

    Examples are drawn for each prompt from a generator of its own, seeded by (seed, prompt), and are never the prompt's
    question. Those of every split are training questions: no validation question is seen in training. Raises UserError
    where there are fewer than `count` others.
    """
    form = FORMS[rule]
    answers = {pair.prompt: pair.chosen for pair in splits["train"]}
    questions = list(answers)
    if count >= len(questions):
        raise UserError(f"--few-shot: {count} examples cannot be drawn from {len(questions)} questions; ask for fewer")
    prompts: dict[str, str] = {}

    def prompt_of(question: str) -> str:
        if question not in prompts:
            # One more than is needed, of which the question itself is left out.
            drawn = random.Random(f"{seed}:{question}").sample(questions, count + 1 if count else 0)
            others = [other for other in drawn if other != question][:count]
            solved = [f"{form.format(other)} {answers[other]}" for other in others]
            prompts[question] = SEPARATOR.join([*solved, form.format(question)])
        return prompts[question]

    return {
        name: [Pair(prompt_of(pair.prompt), pair.chosen, pair.rejected) for pair in pairs]
        for name, pairs in splits.items()
    }
