"""Where rows come from: files, compressed files, patterns, folders of shards, saved and hub datasets."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from dpop_base.errors import UserError
from megatron_dpop.data.files.rows import FileRows, Location, _hub_rows, find_rows
from megatron_dpop.data.reading import open_source

PAIRS = [{"prompt": f"Q{i}", "chosen": "a", "rejected": "b"} for i in range(6)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstandard(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def prompts(location: Location) -> list[str]:
    return [values["prompt"] for _, values in open_source(location).entries()]


@pytest.mark.parametrize(
    ("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstandard)]
)
def test_compressed_lines(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(compress(lines(PAIRS)))
    assert prompts(Location(str(path))) == [row["prompt"] for row in PAIRS]
    assert Location(str(path)).stem == "a"
    path.write_bytes(compress(lines(PAIRS * 500))[:-30])
    with pytest.raises(UserError, match=rf"a\.jsonl\.{suffix}: not a whole \.{suffix} file"):
        prompts(Location(str(path)))
    (tmp_path / "array.json.gz").write_bytes(gzip.compress(json.dumps(PAIRS, indent=1).encode()))
    assert len(prompts(Location(str(tmp_path / "array.json.gz")))) == 6
    with pytest.raises(UserError, match="unknown file type"):
        open_source(Location(str(write(tmp_path / "a.parquet.gz", b"x"))))


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_pattern_reads_its_files_in_order_and_all_bytes_count(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / f"part-{index}.jsonl", lines(PAIRS[2 * index : 2 * index + 2]))
    location = Location(str(tmp_path / "part-*.jsonl"))
    assert prompts(location) == [row["prompt"] for row in PAIRS]
    places = [where for where, _ in open_source(location).entries()]
    assert places[:3] == ["part-0.jsonl, line 1", "part-0.jsonl, line 2", "part-1.jsonl, line 1"]
    before = find_rows(location).digest()
    for index in range(3):
        path = tmp_path / f"part-{index}.jsonl"
        original = path.read_bytes()
        path.write_bytes(original.replace(b'"a"', b'"c"', 1))
        assert find_rows(location).digest() != before
        path.write_bytes(original)
    assert find_rows(location).digest() == before
    (tmp_path / "part-2.jsonl").unlink()
    assert find_rows(location).digest() != before
    with pytest.raises(UserError, match=r"none-\*: no file matches this pattern"):
        find_rows(Location(str(tmp_path / "none-*")))
    with pytest.raises(UserError, match="`split` belongs to folders and hub datasets"):
        find_rows(Location(str(tmp_path / "part-0.jsonl"), split="train"))


def test_a_folder_of_shards_has_the_splits_that_datasets_sees(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    write(folder / "data" / "train-00000-of-00002.jsonl", lines(PAIRS[:2]))
    write(folder / "data" / "train-00001-of-00002.jsonl", lines(PAIRS[2:4]))
    write(folder / "data" / "test-00000-of-00001.jsonl", lines(PAIRS[4:]))
    write(folder / "notes.md", b"# none of the data")
    assert prompts(Location(str(folder), "train")) == ["Q0", "Q1", "Q2", "Q3"]
    assert prompts(Location(str(folder), "test")) == ["Q4", "Q5"]
    with pytest.raises(UserError, match="holds the splits train, test; say which with `split`"):
        find_rows(Location(str(folder)))
    with pytest.raises(UserError, match="has no split 'dev'; it has train, test"):
        find_rows(Location(str(folder), "dev"))
    write(folder / "data" / "more.jsonl", lines(PAIRS))
    assert find_rows(Location(str(folder), "train")).unused_files == ("data/more.jsonl",)
    write(folder / "others.csv", b"prompt,chosen,rejected\nQ,a,b\n")
    write(folder / "dataset_infos.json", b"{}")
    write(folder / ".cache" / "kept.jsonl", lines(PAIRS))
    assert find_rows(Location(str(folder), "train")).unused_files == ("data/more.jsonl", "others.csv")
    with pytest.raises(UserError, match="holds no data file"):
        find_rows(Location(str(write(tmp_path / "none" / "a.txt", b"x").parent)))


def test_a_folder_says_in_its_readme_which_files_are_what(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    readme = """---
configs:
- config_name: first
  data_files: [{split: train, path: one.jsonl}]
- config_name: second
  data_files: [{split: train, path: two.jsonl}]
---
"""
    write(folder / "README.md", readme.encode())
    write(folder / "one.jsonl", lines(PAIRS[:1]))
    write(folder / "two.jsonl", lines(PAIRS[1:3]))
    assert prompts(Location(str(folder), subset="second")) == ["Q1", "Q2"]
    with pytest.raises(UserError, match="Config name is missing"):
        find_rows(Location(str(folder)))


def test_saved_datasets_and_those_of_load_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    whole = datasets.Dataset.from_list(PAIRS)
    whole.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    found = find_rows(Location(str(tmp_path / "saved")))
    assert isinstance(found, FileRows)
    assert len(found.paths) == 3
    assert prompts(Location(str(tmp_path / "saved"))) == [row["prompt"] for row in PAIRS]
    with pytest.raises(UserError, match="holds one dataset without splits"):
        find_rows(Location(str(tmp_path / "saved"), "train"))
    parts = datasets.DatasetDict({"train": whole.select([3, 1]), "test": whole.select([0])})
    parts.save_to_disk(str(tmp_path / "dict"))
    assert prompts(Location(str(tmp_path / "dict"), "train")) == ["Q3", "Q1"]
    # The hub's code on a repository that lies here: splits, slices of them, and what belongs to neither.
    repository = write(tmp_path / "repository" / "train.jsonl", lines(PAIRS)).parent
    write(repository / "test.jsonl", lines(PAIRS[:1]))
    rows = _hub_rows(Location(str(repository), "train"))
    assert [row["prompt"] for _, row in rows.read()] == [row["prompt"] for row in PAIRS]
    sliced = _hub_rows(Location(str(repository), "train[2:4]"))
    assert [row["prompt"] for _, row in sliced.read()] == ["Q2", "Q3"]
    assert len({rows.digest(), sliced.digest(), _hub_rows(Location(str(repository), "train[2:5]")).digest()}) == 3
    assert sliced.filled_beside(["prompt"]) == {"chosen": 2, "rejected": 2}
    with pytest.raises(UserError, match="holds the splits train, test"):
        _hub_rows(Location(str(repository)))
    with pytest.raises(UserError, match="neither a local file nor a dataset that the hub gives"):
        _hub_rows(Location(str(repository), "dev"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_columns_that_nobody_wants_are_not_read_but_named(tmp_path: Path, name: str) -> None:
    table = pyarrow.table(
        {
            **{key: [row[key] for row in PAIRS] for key in ("prompt", "chosen", "rejected")},
            "picture": [b"x" * 100, None, *[b"y" * 100] * 4],
            "nothing": pyarrow.nulls(6, pyarrow.string()),
        }
    )
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(table, tmp_path / name)
    else:
        with pyarrow.OSFile(str(tmp_path / name), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    rows = find_rows(Location(str(tmp_path / name)))
    assert all(row.keys() == {"prompt", "chosen"} for _, row in rows.read({"prompt", "chosen"}))
    reading = open_source(Location(str(tmp_path / name)))
    assert len(list(reading.entries())) == 6
    assert dict(reading.unused) == {"picture": 5}


def test_a_folder_of_everything_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/` given as data would have `datasets` look through the whole machine, several times."""
    monkeypatch.setattr("megatron_dpop.data.files.rows.MOST_ENTRIES", 3)
    for index in range(3):
        write(tmp_path / f"part-{index}.jsonl", lines(PAIRS[2 * index : 2 * index + 2]))
    assert len(prompts(Location(str(tmp_path)))) == 6
    write(tmp_path / "notes.txt", b"x")
    with pytest.raises(UserError, match=r"holds more than 3 files and folders; name the data's own folder"):
        prompts(Location(str(tmp_path)))


def test_what_is_nowhere_is_refused(tmp_path: Path) -> None:
    for path in ("pairs.jsonl", "./org/name", "/x/y", "a/b/c"):
        with pytest.raises(UserError, match="no such file"):
            find_rows(Location(path))


@pytest.mark.parametrize(
    ("path", "stem"),
    [("x/pairs.jsonl.gz", "pairs"), ("shards/part-*.parquet", "part"), ("runs/*.jsonl", "runs"), ("org/name", "name")],
)
def test_a_source_without_a_name_is_called_by_its_files(path: str, stem: str) -> None:
    assert Location(path).stem == stem
