"""Numbers of one example: what `data inspect` sums up and `data filter` compares."""

from collections.abc import Hashable, Sequence

from rapidfuzz.distance import Hamming

from ..edit_distance import normalised_edit_distance
from ..records import Record, readable
from ..tokenise import TokenizedRecord

# In words, for help and documentation; lengths of a pair are chosen_ and rejected_, of others completion_.
OF_EVERY_EXAMPLE = {
    "prompt_characters": "length of the prompt",
    "completion_characters": "length of the completion, of several the longest",
    "duplicate": "1 where an earlier row has the same prompt and completions, else 0",
}
OF_PAIRS = {
    "chosen_characters": "length of the chosen answer",
    "rejected_characters": "length of the rejected one",
    "length_difference": "chosen less rejected, in characters",
    "edit_distance": "Levenshtein distance in characters over the longer answer's length",
    "hamming": "share of places at which the characters differ; what one answer has more differs too",
    "shared_prefix": "share of the shorter answer's characters that both begin with",
    "contradicts": "1 where another row prefers the other of the same two answers, else 0",
}
WITH_TOKENIZER = {
    "prompt_tokens": "tokens of the prompt",
    "completion_tokens": "tokens of the completion, of several the longest",
    "tokens": "prompt_tokens + completion_tokens, what data.max_tokens limits",
    "dropped_share": "share of the answers' characters that the chat template leaves out",
}
OF_PAIRS_WITH_TOKENIZER = {
    "chosen_tokens": "tokens of the chosen answer",
    "rejected_tokens": "tokens of the rejected one",
    "token_hamming": "as hamming, in tokens",
}
OF_PAIRS_WITH_SCORES = {
    "ches": "similarity of both answers' hidden states, which foretells that the chosen one loses probability too",
    "ches_per_token": "the same of means over the answers' tokens",
}


def numbers_of(record: Record, tokens: TokenizedRecord | None, wanted: Sequence[str]) -> dict[str, float]:
    """Those of the wanted numbers that this example has; the ones that need other rows come from who sees them."""
    texts = [readable(completion) for completion in record.completions]
    found = {"completion_characters": float(max(map(len, texts)))}
    if "prompt_characters" in wanted:
        found["prompt_characters"] = float(len(readable(record.prompt)))
    if tokens is not None:
        longest = max(len(completion) for completion in tokens.completions)
        found |= {
            "prompt_tokens": float(len(tokens.prompt)),
            "completion_tokens": float(longest),
            "tokens": float(len(tokens.prompt) + longest),
            "dropped_share": tokens.dropped_share,
        }
    if is_pair(record):
        found |= _of_pair(texts[0], texts[1], wanted)
        if tokens is not None:
            chosen, rejected = tokens.completions
            found |= {"chosen_tokens": float(len(chosen)), "rejected_tokens": float(len(rejected))}
            if "token_hamming" in wanted:
                found["token_hamming"] = normalised_hamming(chosen.tolist(), rejected.tolist())
    return found


def _of_pair(chosen: str, rejected: str, wanted: Sequence[str]) -> dict[str, float]:
    found = {
        "chosen_characters": float(len(chosen)),
        "rejected_characters": float(len(rejected)),
        "length_difference": float(len(chosen) - len(rejected)),
    }
    if "edit_distance" in wanted:
        found["edit_distance"] = normalised_edit_distance(chosen, rejected)
    if "hamming" in wanted:
        found["hamming"] = normalised_hamming(chosen, rejected)
    if "shared_prefix" in wanted:
        found["shared_prefix"] = common_characters((chosen, rejected)) / max(1, min(len(chosen), len(rejected)))
    return found


def is_pair(record: Record) -> bool:
    return record.preferred == (True, False)


def normalised_hamming(left: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    """Share of the longer one's places at which they differ."""
    return float(Hamming.normalized_distance(left, right, pad=True))


def common_characters(texts: Sequence[str]) -> int:
    """Length of what all begin with; 0 for a single text."""
    if len(texts) < 2:
        return 0
    shortest, longest = min(texts), max(texts)
    return next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))
