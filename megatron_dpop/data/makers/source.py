"""Rows of a source dataset: a local file, a folder that `datasets` saved, or a dataset of the Hugging Face hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint_convert.errors import UserError, first_line

from ..read_rows import FILE_TYPES, Row, read_rows

if TYPE_CHECKING:
    import datasets


def source_rows(source: str, *, config: str | None, split: str) -> Iterator[Row]:
    """Yields (where, row); `config` and `split` only matter where the source is more than one file."""
    path = Path(source).expanduser()
    if path.is_file() or path.suffix.lower() in FILE_TYPES:
        yield from read_rows(path)
        return
    dataset = _from_disk(path, split) if path.is_dir() else _from_hub(source, config, split)
    for index, row in enumerate(dataset, 1):
        yield f"{split} row {index}", row


def _from_disk(path: Path, split: str) -> "datasets.Dataset":
    import datasets  # takes seconds, which commands that read plain files should not wait

    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(path))
            return found[split] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(str(path), split=split)
    except Exception as error:  # the library raises a dozen unrelated types for a bad folder
        raise UserError(f"{path}: no dataset with split {split!r} can be read from it ({first_line(error)})") from None


def _from_hub(source: str, config: str | None, split: str) -> "datasets.Dataset":
    import datasets

    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"{source}: no such file or folder")
    try:
        return datasets.load_dataset(source, config, split=split)
    except Exception as error:  # network, hub and parsing errors share no base class
        raise UserError(
            f"{source}: neither a local file nor a dataset that the hub gives ({first_line(error)}); "
            "download its files and name one"
        ) from None
