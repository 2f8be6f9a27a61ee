"""What a run began with, kept in its folder: a run that goes on must go on with the same model, tokenizer and data.

A path in the config says where something lies, not what it is. So `identity.json` holds a digest of every byte of each
file that decides what the run computes. Times of files play no part: copying, moving or touching changes nothing.
"""

import glob
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoint_convert.locate import assets_folder, checkpoint_kind, iteration_folder
from checkpoint_convert.tensors.huggingface import HuggingFaceSource
from dpop_base.checksums import digest, seal, unseal
from dpop_base.errors import UserError
from dpop_base.files import write_json
from dpop_base.run_names import CHECKPOINTS, IDENTITY
from megatron_dpop.checkpoints.complete import has_checkpoint
from megatron_dpop.checkpoints.digests import Digests, digests_here
from megatron_dpop.checkpoints.intact import content_files
from megatron_dpop.config import Config
from megatron_dpop.data.examples import TokenizedDataset
from megatron_dpop.data.tokenizer import tokenizer_files
from megatron_dpop.training.inputs import Inputs, tokenizer_folder

CONFIG = "config.json"

Files = dict[str, dict[str, Path]]  # by config key, then by a name that says which of its files


@dataclass(frozen=True)
class Identity:
    """The digests of files by config key, and of each source's tokens."""

    files: dict[str, dict[str, str]]
    tokens: dict[str, str]
    template_date: str | None = None  # what chat templates are told is today's date


def identify(config: Config, inputs: Inputs, digests: Digests, *, with_weights: bool) -> Identity:
    """`with_weights`: models too, every byte of them."""
    files = input_files(config, inputs)
    if with_weights:
        files |= weight_files(inputs)
    found = digests(path for named in files.values() for path in named.values())
    return Identity(
        {key: {name: found[path] for name, path in named.items()} for key, named in files.items()},
        {**_tokens("data.train", inputs.train), **_tokens("data.validation", inputs.validation)},
        config.data.template_date,
    )


def input_files(config: Config, inputs: Inputs) -> Files:
    """Everything but weights: small, or read anyway."""
    tokenizer = tokenizer_files(tokenizer_folder(config, inputs.model))
    files: Files = {"model.tokenizer": {path.name: path for path in tokenizer}}
    template = config.data.chat_template
    if template is not None and "\n" not in template and len(template) < 4096 and Path(template).is_file():
        files["data.chat_template"] = {template: Path(template)}
    for key, sources in (("data.train", config.data.train), ("data.validation", config.data.validation)):
        files[key] = {str(path): path for source in sources for path in _data_files(source.path)}
    return {key: named for key, named in files.items() if named}


def _data_files(source: str) -> list[Path]:
    """The files that a path or a pattern names. Of a folder, or a dataset on the hub, its tokens have to tell."""
    path = Path(source).expanduser()
    names = [str(path)] if path.exists() else glob.glob(str(path), recursive=True)
    return sorted(Path(name) for name in names if Path(name).is_file())


def weight_files(inputs: Inputs) -> Files:
    files = {"model.path": model_files(inputs.model)}
    if inputs.reference_model is not None:
        files["reference.model"] = model_files(inputs.reference_model)
    return files


def model_files(folder: Path) -> dict[str, Path]:
    """The files that a model's weights and shape are read from, of either kind of checkpoint."""
    config = {CONFIG: assets_folder(folder) / CONFIG}
    if checkpoint_kind(folder) == "megatron":
        return config | content_files(iteration_folder(folder))
    source = HuggingFaceSource(folder)
    try:
        return config | {path.name: path for path in source.files()}
    finally:
        source.close()


def weights_id(digests: dict[str, str]) -> str:
    """One digest for all of a model's files."""
    return digest(json.dumps(sorted(digests.items())).encode())


def _tokens(key: str, dataset: TokenizedDataset | None) -> dict[str, str]:
    sources = dataset.sources if dataset else ()
    return {f"{key} ({source.name})": source.examples.digest for source in sources}


def read_identity(folder: Path) -> Identity | None:
    """A run's, or None where it has none yet. Raises UserError where it is damaged."""
    path = folder / IDENTITY
    try:
        return Identity(**unseal(json.loads(path.read_bytes())))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError, TypeError):
        raise UserError(
            f"{path}: is damaged, so that nothing tells whether the run goes on with what it began with; remove it "
            "if you know that model, tokenizer and data are the same"
        ) from None


def write_identity(folder: Path, identity: Identity) -> None:
    write_json(folder / IDENTITY, seal(asdict(identity)))


def check_before_start(config: Config, inputs: Inputs) -> None:
    """What one process can tell soon: all but whether the weights are those that the run began with."""
    run = Path(config.run.dir)
    began = read_identity(run) if has_checkpoint(run / CHECKPOINTS) else None
    if began is not None:
        check_same(began, identify(config, inputs, digests_here, with_weights=False), run)


def check_same(began: Identity, now: Identity, run: Path) -> None:
    """Raises UserError for the first file or source that is not what the run began with."""
    for key, new in now.files.items():
        old = began.files.get(key, new)
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                change = "is missing" if name not in new else "is new" if name not in old else "has changed"
                raise UserError(
                    f"{key}: {name} {change} since the run in {run} began, which cannot go on with that; restore what "
                    "it began with, or choose a new run.dir to begin anew"
                )
    for source, tokens in now.tokens.items():
        if began.tokens.get(source, tokens) != tokens:
            raise UserError(
                f"{source}: gives other tokens than when the run in {run} began, which cannot go on with them; restore "
                "the data, and the versions of transformers and of this package that it began with, or choose a new "
                "run.dir to begin anew"
            )
