"""Mismatched examples: every completion is lent once, never to its own prompt, and none makes a longer example."""

import json

import numpy as np
import pytest

from megatron_dpop.data.load import DataSource, load_dataset
from megatron_dpop.training.kl import MismatchedDataset
from tests.tiny import write_pairs, write_tokenizer


@pytest.fixture(scope="module")
def pair_of_datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("mismatched")
    write_tokenizer(folder)
    pairs = write_pairs(folder / "pairs.jsonl", 18)
    long, short = " ".join(f"w{at}" for at in range(25)), "w1 w2"
    lines = [{"prompt": a, "chosen": b, "rejected": b + " w3"} for a, b in ((long, short), (short, long))]
    pairs.write_text(pairs.read_text() + "".join(json.dumps(line) + "\n" for line in lines))
    dataset = load_dataset([DataSource(pairs)], folder, max_tokens=64, kind="single", workers=1, progress=False)
    return dataset, MismatchedDataset(dataset)


def test_every_completion_is_lent_once_and_to_another_prompt(pair_of_datasets: tuple) -> None:
    dataset, mismatched = pair_of_datasets
    assert len(mismatched) == len(dataset) == 40
    lenders = []
    for index in range(len(dataset)):
        np.testing.assert_array_equal(mismatched[index].prompt, dataset[index].prompt)
        (borrowed,) = mismatched[index].completions
        owners = [
            at for at in range(len(dataset)) if np.array_equal(dataset[at].completions[0][: len(borrowed)], borrowed)
        ]
        assert owners != [index]
        lenders.append(owners)
    for owner in range(len(dataset)):
        assert any(owner in owners for owners in lenders)


def test_lengths_are_those_of_the_examples_and_not_above_the_longest(pair_of_datasets: tuple) -> None:
    dataset, mismatched = pair_of_datasets
    lengths = mismatched.lengths()
    longest = max(len(example.prompt) + len(example.completions[0]) for example in dataset)
    cut = 0
    for index in range(len(mismatched)):
        example = mismatched[index]
        assert lengths.prompt_tokens[index] == len(example.prompt)
        assert lengths.completion_tokens[index] == len(example.completions[0]) > 0
        assert len(example.prompt) + len(example.completions[0]) <= longest
        cut += example.completions[0][-1] != 4  # the end of the turn
    assert cut, "no completion had to be cut"


def test_fingerprint_is_its_own_and_reproducible(pair_of_datasets: tuple) -> None:
    dataset, mismatched = pair_of_datasets
    assert mismatched.fingerprint == MismatchedDataset(dataset).fingerprint != dataset.fingerprint
