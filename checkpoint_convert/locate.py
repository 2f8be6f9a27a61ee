"""Which kind of checkpoint a folder holds, whether it is whole, and where its parts are."""

from pathlib import Path
from typing import Literal

from checkpoint_convert.conversion.journal import interrupted_command, is_incomplete
from checkpoint_convert.foreign import foreign_format
from dpop_base.checkpoint_names import ASSETS, METADATA, TRACKER, iteration_name, missing_part
from dpop_base.errors import UserError

NEMO_WEIGHTS = "weights"  # NeMo 2's torch_dist folder, beside context/


def checkpoint_kind(folder: Path) -> Literal["huggingface", "megatron"]:
    """Raises UserError where the folder is missing, is neither kind, or holds an interrupted conversion."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a Hugging Face or a Megatron checkpoint folder")
    if is_incomplete(folder) or is_incomplete(folder.parent):
        whole = folder if is_incomplete(folder) else folder.parent
        raise UserError(f"{whole}: its conversion was interrupted; continue it with: {interrupted_command(whole)}")
    if (folder / TRACKER).is_file() or (_torch_dist(folder) / METADATA).is_file():
        return "megatron"
    if foreign := foreign_format(folder):
        raise UserError(f"{folder}: {foreign}")
    if (folder / "config.json").is_file():
        return "huggingface"
    raise UserError(f"{folder}: holds neither config.json nor {TRACKER}; name a checkpoint folder")


def iteration_folder(folder: Path) -> Path:
    """
    The torch_dist folder that the tracker file names (`release` or `iter_0000100`), or `folder` itself where it is
    one. Raises UserError where it is missing or incomplete.
    """
    folder = Path(folder)
    if checkpoint_kind(folder) != "megatron":
        raise UserError(f"{folder}: is a Hugging Face folder; convert it first with checkpoint-convert hf-to-megatron")
    found = _torch_dist(folder)
    if not (found / METADATA).is_file():
        name = (folder / TRACKER).read_text(encoding="utf-8", errors="replace").strip()
        if name != "release" and not name.isdecimal():
            raise UserError(f"{folder / TRACKER}: holds {name[:40]!r}; it must hold an iteration or 'release'")
        found = folder / (name if name == "release" else iteration_name(int(name)))
    if found.is_dir() and (foreign := foreign_format(found)):
        raise UserError(f"{found}: {foreign}")
    if part := missing_part(found):
        raise UserError(f"{found}: has no {part}, so this checkpoint is incomplete; save or copy it again")
    return found


def assets_folder(folder: Path) -> Path:
    """The folder with config.json, generation config and tokenizer files. Raises UserError where there is none."""
    folder = Path(folder)
    if checkpoint_kind(folder) == "huggingface":
        return folder
    for candidate in (folder / ASSETS, folder.parent / ASSETS):
        if (candidate / "config.json").is_file():
            return candidate
    nemo = "is a NeMo 2 checkpoint and " if _torch_dist(folder) != folder else ""
    raise UserError(
        f"{folder}: {nemo}has no {ASSETS}/config.json; copy config.json and the tokenizer files of its model there (or "
        "give megatron-to-hf their folder with --config, or let it make config.json with --from-args FAMILY)"
    )


def _torch_dist(folder: Path) -> Path:
    """`folder`, or the folder of a NeMo 2 checkpoint that holds its tensors."""
    nemo = folder / NEMO_WEIGHTS
    return nemo if (nemo / METADATA).is_file() and not (folder / METADATA).is_file() else folder
