"""The same training in plain transformers and autograd, from the papers' formulas: no rows, no Megatron."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.megatron_dpop.training.adapters import with_shared_inputs


@dataclass(frozen=True)
class Example:
    prompt: list[int]
    completions: list[list[int]]
    preferred: list[bool]
    source: str = "pairs"


def completion_logps(
    model: torch.nn.Module, prompt: list[int], completion: list[int], weights: list[float] | None = None
) -> torch.Tensor:
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
    targets = torch.tensor(completion)
    logps = F.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    return logps.sum() if weights is None else (logps * torch.tensor(weights)).sum()


def example_loss(
    options: dict,
    logps: list[torch.Tensor],
    base: list[torch.Tensor],
    example: Example,
    kl: torch.Tensor,
    progress: float = 0.0,
) -> torch.Tensor:
    """The loss of one example; logps and base: of its completions, summed over tokens, policy's and reference's."""
    name, beta = options["name"], options.get("beta", 0)
    if name == "sum":
        return sum(term["weight"] * example_loss(term, logps, base, example, kl) for term in options["terms"])
    if weight := options.get("nll_weight", 0):
        rest = example_loss({**options, "nll_weight": 0}, logps, base, example, kl, progress)
        return rest - weight * logps[0] / len(example.completions[0])
    good, bad = ([value for value, wanted in zip(logps, example.preferred, strict=True) if wanted is side]
                 for side in (True, False))  # fmt: skip
    chosen, rejected = logps[0] - base[0], logps[-1] - base[-1]
    if name == "sft":
        return -logps[0] / len(example.completions[0])
    if name == "kto":
        return 1 - torch.sigmoid(beta * (chosen - kl if example.preferred[0] else kl - chosen))
    if name == "aft":
        return torch.log1p(sum(torch.exp(loser - winner) for loser in bad for winner in good))
    if name == "dpo":
        return -F.logsigmoid(beta * (chosen - rejected))
    if name == "dpop":
        return -F.logsigmoid(beta * (chosen - rejected - options["lambda"] * F.relu(-chosen)))
    if name == "dpo_shift":
        factor = options["lambda"] + (options["lambda_end"] - options["lambda"]) * progress
        return -F.logsigmoid(beta * (chosen - factor * rejected))
    if name == "simpo":
        means = [value / len(ids) for value, ids in zip(logps, example.completions, strict=True)]
        return -F.logsigmoid(beta * (means[0] - means[1]) - options["gamma"])
    if name == "hinge":
        return F.relu(1 - beta * (chosen - rejected))
    if name == "cpo":
        return -F.logsigmoid(beta * (logps[0] - logps[1])) - logps[0]
    assert name == "ipo"
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def read_pairs(tree: dict) -> list[Example]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tree["model"]["path"])
    examples = []
    for line in Path(tree["data"]["train"]).read_text().splitlines():
        pair = json.loads(line)
        prompt = tokenizer(f"<user> {pair['prompt']} <end> <assistant>").input_ids
        sides = [tokenizer(f"{pair[side]} <end>").input_ids for side in ("chosen", "rejected")]
        examples.append(Example(prompt, sides, [True, False]))
    return examples


def reference_run(tree: dict, *, adapter: Path | None = None) -> list[dict[str, float]]:
    """Loss, gradient norm and log-probabilities of each step of a config of `tests.tiny`, on pairs."""
    return reference_steps(tree, read_pairs(tree), adapter=adapter)


def reference_steps(
    tree: dict, examples: list[Example], mismatched: list[Example] | None = None, *, adapter: Path | None = None
) -> list[dict[str, float]]:
    """The same for examples of any kind; `mismatched` are what KTO's KL term is estimated from.

    With `adapter`, a PEFT folder, only that is trained.
    """
    torch.set_num_threads(1)  # a tiny model gains nothing from more, and waits for them on a busy machine
    policy_folder = tree["model"]["path"]
    reference_folder = tree.get("reference", {}).get("model") or policy_folder
    model = AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.float32)
    if adapter is not None:
        model = with_shared_inputs(model, str(adapter))
    frozen = AutoModelForCausalLM.from_pretrained(reference_folder, dtype=torch.float32)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    options = tree["optimizer"]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options["weight_decay"]}, {"params": plain, "weight_decay": 0.0}],
        lr=options["lr"],
    )

    tokenizer = PreTrainedTokenizerFast.from_pretrained(policy_folder)
    unscored = tokenizer.convert_tokens_to_ids(list(tree["data"].get("unscored", [])))
    tail = tree["loss"].get("ld_alpha", 1.0)

    def logps(of: torch.nn.Module, example: Example) -> list[torch.Tensor]:
        shortest = min(map(len, example.completions))
        return [
            completion_logps(
                of,
                example.prompt,
                completion,
                [(ids not in unscored) * (1.0 if at < shortest else tail) for at, ids in enumerate(completion)],
            )
            for completion in example.completions
        ]

    batch, steps = tree["train"]["global_batch_pairs"], []
    order = np.concatenate([np.random.default_rng((0, epoch)).permutation(len(examples)) for epoch in range(9)])
    for step in range(tree["train"]["steps"]):
        optimizer.zero_grad()
        collected = defaultdict(list)
        kl = torch.zeros(())
        taken = order[step * batch : (step + 1) * batch]
        if mismatched:
            with torch.no_grad():
                ratios = [logps(model, mismatched[at])[0] - logps(frozen, mismatched[at])[0] for at in taken]
            kl = torch.stack(ratios).mean().clamp(min=0)
        for index in taken:
            example = examples[index]
            with torch.no_grad():
                base = logps(frozen, example)
            policy = logps(model, example)
            loss = example_loss(tree["loss"], policy, base, example, kl, step / tree["train"]["steps"])
            for prefix in ("", f"source/{example.source}/"):
                collected[f"{prefix}loss"].append(loss)
                for value, preferred in zip(policy, example.preferred, strict=True):
                    collected[f"{prefix}logps/{'chosen' if preferred else 'rejected'}"].append(value.detach())
        means = {name: torch.stack(values).mean() for name, values in collected.items()}
        means["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.get("clip_norm", 1.0))
        optimizer.step()
        values = {name: value.item() for name, value in means.items()}
        steps.append({**values, "grad_norm": norm.item(), **({"kto/kl": kl.item()} if mismatched else {})})
    return steps
