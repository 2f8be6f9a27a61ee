"""Random examples of every shape that the data package can give, and their lengths as it gives them."""

import numpy as np
from hypothesis import strategies as st

from megatron_dpop.data.examples import Lengths, TokenizedExample
from megatron_dpop.data.tokenise import common_prefix_tokens

# Three tokens only, so that shared prefixes, one completion inside another and equal first tokens are common.
token_lists = st.lists(st.integers(1, 3), min_size=1, max_size=7)


@st.composite
def examples(draw: st.DrawFn) -> TokenizedExample:
    common = draw(st.lists(st.integers(1, 3), max_size=4))
    completions = [common + own for own in draw(st.lists(token_lists, min_size=1, max_size=3))]
    return example(draw(token_lists), completions)


def example(prompt: list[int], completions: list[list[int]]) -> TokenizedExample:
    arrays = tuple(np.array(completion, dtype=np.int32) for completion in completions)
    return TokenizedExample(
        prompt=np.array(prompt, dtype=np.int32),
        completions=arrays,
        preferred=tuple(at == 0 for at in range(len(completions))),
        source="test",
        common_prefix_tokens=common_prefix_tokens(arrays),
    )


def lengths_of(group: list[TokenizedExample]) -> Lengths:
    widest = max(len(one.completions) for one in group)
    completion_tokens = np.zeros((len(group), widest), dtype=np.int32)
    for at, one in enumerate(group):
        completion_tokens[at, : len(one.completions)] = [len(completion) for completion in one.completions]
    return Lengths(
        np.array([len(one.prompt) for one in group], dtype=np.int32),
        completion_tokens,
        np.array([one.common_prefix_tokens for one in group], dtype=np.int32),
    )
