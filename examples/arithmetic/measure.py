"""What a model does with the held-out problems: its answers, how far it has gone, and what it says of each token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron
from megatron_dpop.analysis.spans import SPANS, Mean, PairLogps, share_below, summarise

LONGEST_ANSWER = 40  # tokens; the longest right ones have 36


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: Tensor  # int64 [prompt and answer], the end of turn included where it was said
    prompt_tokens: int


def load_model(folder: Path) -> tuple[Any, Any]:
    """A model and its tokenizer, for transformers, in bf16."""
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False)
    return model.eval(), tokenizer


def give_weights(engine: Any, model: Any) -> None:
    """Puts the weights that the trainer's engine holds into a transformers model, by the converter's own table."""
    (module,) = engine.modules
    held = {_converters_name(name, entry.key): entry.data for name, entry in module.sharded_state_dict().items()}
    weights = {
        recipe.name: torch.cat([held[part.source][part.start : part.start + part.rows] for part in recipe.segments])
        for recipe in from_megatron(RULES[engine.architecture.family], engine.architecture)
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing  # where it is tied to the embedding
    model.tie_weights()


def _converters_name(name: str, key: str) -> str:
    """Puts the layer of a module's own name into a checkpoint's key, whose layers are stacked."""
    layer = re.match(r"decoder\.layers\.\d+\.", name)
    return key if layer is None else layer[0] + key.removeprefix("decoder.layers.")


@torch.inference_mode()
def greedy_answers(model: Any, tokenizer: Any, questions: Sequence[str], batch: int = 150) -> list[Answer]:
    """The most likely token each time, until the end of turn."""
    answers = []
    for first in range(0, len(questions), batch):
        asked = tokenizer(list(questions[first : first + batch]), return_tensors="pt", padding=True)
        found = model.generate(
            **asked,
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        width = asked.input_ids.shape[1]
        for row, mask in zip(found, asked.attention_mask, strict=True):
            said = row[width:].tolist()
            if tokenizer.eos_token_id in said:
                said = said[: said.index(tokenizer.eos_token_id) + 1]
            prompt = row[:width][mask.bool()]
            text = tokenizer.decode(said, skip_special_tokens=True)
            answers.append(Answer(text, torch.cat((prompt, torch.tensor(said, dtype=torch.int64))), len(prompt)))
    return answers


@torch.inference_mode()
def mean_kl(policy: Any, reference: Any, answers: Sequence[Answer], batch: int = 25) -> float:
    """KL(policy || reference) in nats a token: over the whole vocabulary, at each token of the policy's own answers."""
    total, tokens = 0.0, 0
    for first in range(0, len(answers), batch):
        some = answers[first : first + batch]
        # Right padding: causal attention keeps it from all that is looked at.
        padded = torch.nn.utils.rnn.pad_sequence([one.tokens for one in some], batch_first=True)
        places = torch.zeros(padded.shape, dtype=torch.bool)
        for row, one in enumerate(some):
            places[row, one.prompt_tokens - 1 : len(one.tokens) - 1] = True
        ours, theirs = (model(padded).logits[places].float().log_softmax(-1) for model in (policy, reference))
        total += float((ours.exp() * (ours - theirs)).sum())
        tokens += int(places.sum())
    return total / tokens


def token_summary(ours: Sequence[PairLogps], reference: Sequence[PairLogps], common: Sequence[int]) -> dict[str, Any]:
    """Means over held-out pairs, all minus the reference's. `common`: tokens that a pair's answers begin with alike."""

    def moved(side: str) -> list[float]:
        sums = ([float(getattr(pair, side).sum(dtype="float64")) for pair in model] for model in (ours, reference))
        return [mine - base for mine, base in zip(*sums, strict=True)]

    chosen, rejected = moved("chosen"), moved("rejected")
    margins = [up - down for up, down in zip(chosen, rejected, strict=True)]
    mine, base = (summarise([pair.chosen for pair in model], common).spans for model in (ours, reference))
    return {
        "chosen_minus_reference": _mean(chosen),  # nats an answer
        "rejected_minus_reference": _mean(rejected),
        "margin": _mean(margins),  # nats, without beta
        "pair_accuracy": _mean([float(margin > 0) for margin in margins]),
        # Nats a token of the chosen answers; of pairs that differ from the start on nothing stands before the edit.
        **{f"{span}_edit": _change(mine[span], base[span]) for span in SPANS},
        "fell_after_edit": share_below(
            [pair.chosen for pair in ours], [pair.chosen for pair in reference], common
        ).value,
    }


def _change(mine: Mean, base: Mean) -> float | None:
    return None if mine.value is None or base.value is None else mine.value - base.value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
