"""From files to a dataset: cache, processes, blends, sources, errors."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from dpop_base.errors import UserError
from megatron_dpop.data.examples import TokenizedDataset
from megatron_dpop.data.files.read_csv import read_csv
from megatron_dpop.data.load import DataSource, load_dataset, source_names


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"how many apples are {i}?", "chosen": f"the answer is {i}", "rejected": f"the answer is {i + 1}"}
        for i in range(start, start + count)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(content).to_parquet(path)
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(content).to_csv(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def load(path: Path, folder: Path, **options: Any) -> TokenizedDataset:
    settings = {"max_tokens": 512, "progress": False, "workers": 1, **options}
    return load_dataset([DataSource(path)], folder, **settings)


def tokens(dataset: TokenizedDataset) -> list[tuple]:
    return [(e.prompt.tolist(), [c.tolist() for c in e.completions], e.preferred, e.source) for e in dataset]


def test_examples_and_lengths_agree(tmp_path: Path, llama: Path) -> None:
    dataset = load(write(tmp_path / "a.jsonl", rows(30)), llama)
    assert len(dataset) == 30
    lengths = dataset.lengths()
    for index, example in enumerate(dataset):
        assert example.prompt.dtype == np.int32
        assert example.preferred == (True, False)
        assert example.source == "a"
        assert lengths.prompt_tokens[index] == len(example.prompt)
        assert lengths.completion_tokens[index].tolist() == [len(c) for c in example.completions]
        chosen, rejected = example.completions
        shared = lengths.common_prefix_tokens[index]
        assert chosen[:shared].tolist() == rejected[:shared].tolist()
        assert chosen[shared] != rejected[shared]


@pytest.mark.parametrize("name", ["a.parquet", "a.json", "a.csv", "renamed.ndjson"])
def test_file_types_give_the_same_tokens(tmp_path: Path, llama: Path, name: str) -> None:
    expected = tokens(load(write(tmp_path / "x" / "a.jsonl", rows(8)), llama))
    got = tokens(load(write(tmp_path / name, rows(8)), llama))
    assert [entry[:3] for entry in got] == [entry[:3] for entry in expected]


def test_cache_is_kept_and_keyed_by_everything_that_matters(tmp_path: Path, llama: Path) -> None:
    path, cache = write(tmp_path / "a.jsonl", rows(20)), tmp_path / "cache"
    first = load(path, llama, cache=cache)
    files = sorted(cache.glob("*.arrow"))
    assert len(files) == 1
    stamp = files[0].stat().st_mtime_ns
    again = load(path, llama, cache=cache)
    assert files[0].stat().st_mtime_ns == stamp
    assert again.fingerprint == first.fingerprint
    assert tokens(again) == tokens(first) == tokens(load(path, llama))
    assert again.describe() == first.describe()
    moved = load(write(tmp_path / "elsewhere" / "a.jsonl", rows(20)), llama, cache=cache)
    assert moved.fingerprint == first.fingerprint, "the place of a file changes no token"
    mistral = str(Path(__file__).parent / "templates" / "mistral.jinja")
    others = [
        load(path, llama, cache=cache, max_tokens=511),
        load(path, llama, cache=cache, chat_template="none"),
        load(path, llama, cache=cache, chat_template=mistral),
        load(path, llama, cache=cache, too_long="drop"),
        load(path, llama, cache=cache, kind="sft"),
        load(write(path, rows(21)), llama, cache=cache),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 7
    assert len(list(cache.glob("*.arrow"))) == 7
    assert not list(cache.glob("*.tmp"))


def test_half_written_cache_is_built_again(tmp_path: Path, llama: Path) -> None:
    path, cache = write(tmp_path / "a.jsonl", rows(20)), tmp_path / "cache"
    expected = tokens(load(path, llama, cache=cache))
    (facts,), (arrow,) = cache.glob("*.json"), cache.glob("*.arrow")
    facts.unlink()
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert tokens(load(path, llama, cache=cache)) == expected


def _rank(path: Path, folder: Path, cache: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    dataset = load(path, folder, cache=cache)
    built = [entry.stat().st_ino for entry in cache.glob("*.arrow")]
    results.put((dataset.fingerprint, built, os.getpid()))


@pytest.mark.slow
def test_several_ranks_at_once_build_once(tmp_path: Path, llama: Path) -> None:
    path, cache = write(tmp_path / "a.jsonl", rows(3000)), tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    ranks = [context.Process(target=_rank, args=(path, llama, cache, barrier, results)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=300) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert len({fingerprint for fingerprint, _, _ in found}) == 1
    assert len({tuple(inodes) for _, inodes, _ in found}) == 1, "nobody replaced the file that another had read"


@pytest.mark.slow
def test_several_processes_give_the_same_dataset(tmp_path: Path, llama: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(9000))
    one, two = load(path, llama, workers=1), load(path, llama, workers=2)
    assert tokens(one) == tokens(two)
    assert one.describe() == two.describe()
    broken = write(tmp_path / "b.jsonl", [*rows(7000), {"prompt": "x", "chosen": "y"}, *rows(2000), {"prompt": 1}])
    with pytest.raises(UserError, match=r"b\.jsonl, line 7001: missing `rejected`"):
        load(broken, llama, workers=2)


def test_blend_weights_and_source_names(tmp_path: Path, llama: Path) -> None:
    a, b = write(tmp_path / "x" / "train.jsonl", rows(10)), write(tmp_path / "y" / "train.jsonl", rows(8, 50))
    sources = [DataSource(a, 2.0), DataSource(b, 0.5)]
    dataset = load_dataset(sources, llama, max_tokens=512, workers=1, progress=False)
    assert dataset.source_names == ("x.train", "y.train")
    assert np.bincount(dataset.source_index).tolist() == [20, 4]
    counts = {name: [e.prompt.tolist() for e in dataset if e.source == name] for name in dataset.source_names}
    assert all(counts["x.train"].count(prompt) == 2 for prompt in counts["x.train"])
    assert len({tuple(prompt) for prompt in counts["y.train"]}) == 4
    assert len(dataset.lengths().prompt_tokens) == 24
    again = load_dataset(sources, llama, max_tokens=512, workers=1, progress=False)
    assert again.fingerprint == dataset.fingerprint
    other = load_dataset([DataSource(a, 2.0), DataSource(b)], llama, max_tokens=512, workers=1, progress=False)
    assert other.fingerprint != dataset.fingerprint


def test_source_names_and_weights_are_checked(tmp_path: Path, llama: Path) -> None:
    assert source_names([DataSource(Path("p/a.jsonl"), name="mine"), DataSource(Path("q/b.jsonl"))]) == ["mine", "b"]
    with pytest.raises(UserError, match="two sources are called 'mine'"):
        source_names([DataSource(Path("a.jsonl"), name="mine"), DataSource(Path("b.jsonl"), name="mine")])
    path = write(tmp_path / "a.jsonl", rows(3))
    for weight in (0.0, -1.0, float("nan"), 0.01, 1e9, 1e300):
        with pytest.raises(UserError, match="weight"):
            load_dataset([DataSource(path, weight)], llama, max_tokens=512, workers=1, progress=False)
    with pytest.raises(UserError, match="no source"):
        load_dataset([], llama, max_tokens=512)


def test_kinds(tmp_path: Path, llama: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(5))
    single = load(path, llama, kind="single")
    assert [example.preferred for example in single] == [(True,), (False,)] * 5
    assert single.lengths().common_prefix_tokens.tolist() == [0] * 10
    assert [e.preferred for e in load(path, llama, kind="sft")] == [(True,)] * 5
    ranked = [
        {"prompt": "Q", "responses": ["a", "b", "c"], "scores": [1, 3, 2]},
        *({"prompt": f"Q{i}", "responses": ["a", "b"], "scores": [i, 1]} for i in range(3)),
    ]
    group = load(write(tmp_path / "r.jsonl", ranked), llama, kind="group")
    assert [e.preferred for e in group] == [(False, True, False), (False, True), (True, False)]
    assert group.lengths().completion_tokens.shape == (3, 3)
    assert (group.lengths().completion_tokens[1:, 2] == 0).all()
    pairs = load(tmp_path / "r.jsonl", llama)
    assert len(pairs) == 3
    assert any("all completions are rated the same" in line for line in pairs.describe())
    assert any("the best completion against the worst" in line for line in pairs.describe())
    labels = write(tmp_path / "k.jsonl", [{"prompt": "Q", "completion": "a", "label": True}])
    with pytest.raises(UserError, match="of which no pair data can be made"):
        load(labels, llama)


def test_single_labels_are_counted_and_one_label_alone_is_warned_of(tmp_path: Path, llama: Path) -> None:
    def labelled(name: str, labels: list[bool]) -> Path:
        content = [{"prompt": f"Q{i}", "completion": f"a {i}", "label": label} for i, label in enumerate(labels)]
        return write(tmp_path / name, content)

    def described(*paths: Path) -> list[str]:
        sources = [DataSource(path) for path in paths]
        return load_dataset(sources, llama, max_tokens=64, kind="single", workers=1, progress=False).describe()

    good, bad = labelled("good.jsonl", [True] * 3), labelled("bad.jsonl", [False] * 2)
    mixed = described(labelled("mixed.jsonl", [True, False, True]))
    assert mixed[-1] == "labels: 2 chosen, 1 rejected"
    assert described(good)[-2:-1] == ["labels: 3 chosen, 0 rejected"]
    assert described(good)[-1].startswith("warning: no completion is labelled false, so there is nothing to tell apart")
    assert described(bad)[-1].startswith("warning: no completion is labelled true, ")
    assert described(good, bad)[-1] == "labels: 3 chosen, 2 rejected"
    pairs = write(tmp_path / "pairs.jsonl", rows(4))
    assert described(pairs)[-1] == "labels: 4 chosen, 4 rejected"
    assert not any("label" in line for line in load(pairs, llama).describe())


def test_rated_rows_are_gathered_by_prompt(tmp_path: Path, llama: Path) -> None:
    content = [{"prompt": f"Q{i % 3}", "response": f"answer {i}", "rating": i} for i in range(9)]
    dataset = load(write(tmp_path / "a.jsonl", content), llama, chat_template="none")
    assert len(dataset) == 3


def test_too_long_examples_are_counted(tmp_path: Path, llama: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*rows(3), {"prompt": "apples " * 300, "chosen": "yes", "rejected": "no"}])
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: \d+ tokens .* more than data\.max_tokens 100"):
        load(path, llama, max_tokens=100)
    dropped = load(path, llama, max_tokens=100, too_long="drop")
    assert len(dropped) == 3
    assert "a: 1 left out: longer than 100 tokens" in dropped.describe()
    cut = load(path, llama, max_tokens=100, too_long="truncate_prompt")
    assert len(cut) == 4
    assert "a: 1 examples: prompt truncated" in cut.describe()
    with pytest.raises(UserError, match="no example is left"):
        load(path, llama, max_tokens=3, too_long="drop")


def test_stored_tokens_are_read_without_copying(tmp_path: Path, llama: Path) -> None:
    dataset = load(write(tmp_path / "a.jsonl", rows(20)), llama, cache=tmp_path / "cache")
    example = dataset[7]
    assert not example.prompt.flags.owndata
    assert not example.prompt.flags.writeable


def test_half_written_parquet(tmp_path: Path, llama: Path) -> None:
    path = write(tmp_path / "a.parquet", rows(100))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"a\.parquet: not a whole parquet file"):
        load(path, llama)
    table = pyarrow.table({"prompt": ["Q"], "chosen": ["a"]})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match=r"a\.parquet, row 1: missing `rejected`; columns `prompt`, `chosen`"):
        load(path, llama)


def test_semicolons_separate_where_the_header_has_more_of_them(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("the prompt, as asked;chosen;rejected\nq, then;yes, it is;no\n")
    (row,) = read_csv(tmp_path / "pairs.csv")
    assert row == ("row 1", {"the prompt, as asked": "q, then", "chosen": "yes, it is", "rejected": "no"})
    (tmp_path / "pairs.csv").write_text("prompt;chosen;rejected\nq;yes; it is;no\n")
    with pytest.raises(UserError, match="row 1: has 4 fields, the header has 3, by semicolons; put a field"):
        list(read_csv(tmp_path / "pairs.csv"))
