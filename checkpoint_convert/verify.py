"""Two checkpoints of any kind compared tensor by tensor, under their Hugging Face names."""

from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from checkpoint_convert.hf_to_megatron import check_source
from checkpoint_convert.locate import assets_folder, checkpoint_kind, iteration_folder
from checkpoint_convert.logits import NUM_TOKENS, forward, needed_length, prompt
from checkpoint_convert.megatron_to_hf import open_megatron
from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron
from checkpoint_convert.tensors.compare import Difference, difference
from checkpoint_convert.tensors.huggingface import HuggingFaceSource
from checkpoint_convert.tensors.renamed import Renamed
from checkpoint_convert.tensors.source import TensorInfo, TensorSource
from checkpoint_convert.transformers_logits import Logits, transformers_logits
from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.read import read_architecture
from dpop_base.errors import UserError
from dpop_base.progress import byte_progress

SHOWN = 10


@dataclass
class Comparison:
    """What `verify` found; of logits only where they were asked for."""

    num_tensors: int = 0
    different: dict[str, Difference] = field(default_factory=dict)
    dtypes: dict[str, tuple[str, str]] = field(default_factory=dict)  # where they differ
    logits: Logits | None = None

    @property
    def equal(self) -> bool:
        return not self.different and not self.dtypes

    @property
    def good(self) -> bool:
        """Equal, and computing as transformers does where it was asked."""
        return self.equal and (self.logits is None or self.logits.good)

    def text(self) -> str:
        lines = []
        for name, found in sorted(self.different.items(), key=lambda item: -item[1].worst)[:SHOWN]:
            where = list(found.index)
            lines.append(f"{name}: {found.num_different} elements differ, most by {found.worst:.3g} at {where}")
        if len(self.different) > SHOWN:
            lines.append(f"... and {len(self.different) - SHOWN} more tensors")
        if self.dtypes:
            name, (one, two) = next(iter(self.dtypes.items()))
            lines.append(f"{len(self.dtypes)} tensors are stored in another dtype ({name}: {one} and {two})")
        if self.logits is not None:
            lines += self.logits.lines()
        verdict = "equal to the bit" if self.equal else f"{len(self.different)} differ in value"
        return "\n".join([*lines, f"{self.num_tensors} tensors compared, {verdict}"])


def verify(
    first: Path, second: Path, *, logits: bool = False, num_tokens: int | None = None, progress: bool = True
) -> Comparison:
    """
    Compares all tensors, in bounded memory, and if asked the logits of a prompt of `num_tokens` (None: enough to see
    the model's window and rope scaling), with transformers' too. Raises UserError where one of the two is not a whole
    checkpoint or the two do not have the same tensors.
    """
    with closing(open_checkpoint(Path(first))) as one, closing(open_checkpoint(Path(second))) as two:
        _check_same_names(first, one, second, two)
        report = _compare(one, two, progress=progress)
    if logits:
        report.logits = compare_logits(Path(first), Path(second), num_tokens)
    return report


def _compare(one: TensorSource, two: TensorSource, *, progress: bool) -> Comparison:
    report = Comparison(num_tensors=len(one.tensors))
    total = sum(info.num_bytes for info in one.tensors.values())
    with byte_progress("comparing", total, show=progress) as advance:
        for name, info in one.tensors.items():
            if two.tensors[name].dtype != info.dtype:
                report.dtypes[name] = (info.dtype, two.tensors[name].dtype)
            found = difference(one, name, two, name)
            if found.num_different:
                report.different[name] = found
            advance(info.num_bytes)
    return report


def logits_of(folder: Path, tokens: Tensor, *, keep: int | None = None) -> Tensor:
    """fp32 [tokens, vocab] logits of a checkpoint of either kind for int64 [tokens], or of the last `keep` tokens."""
    source, a = open_native(folder)
    megatron = checkpoint_kind(folder) == "megatron"
    with closing(source):
        return forward(source, a, tokens, megatron=megatron, keep=keep)


def compare_logits(first: Path, second: Path, num_tokens: int | None) -> Logits:
    a = read_architecture(assets_folder(first))
    tokens = prompt(a, num_tokens)
    one, two = (logits_of(folder, tokens, keep=NUM_TOKENS) for folder in (first, second))
    found = Logits(len(tokens), needed_length(a), float((one - two).abs().max()))
    for folder, ours in ((first, one), (second, two)):
        if checkpoint_kind(folder) == "huggingface":
            theirs, why_not = transformers_logits(folder, a, tokens, keep=NUM_TOKENS)
            gap = None if theirs is None else float((ours - theirs).abs().max())
            return replace(found, transformers=gap, why_not=why_not, scale=float(ours.abs().max()))
    return replace(found, why_not="neither checkpoint is a Hugging Face folder")


def open_checkpoint(folder: Path) -> TensorSource:
    """A checkpoint of either kind as exactly its architecture's Hugging Face tensors. Raises UserError."""
    source, a = open_native(folder)
    recipes = from_megatron(RULES[a.family], a)
    if checkpoint_kind(folder) == "megatron":
        return Renamed(source, recipes)
    source.tensors = {recipe.name: source.tensors[recipe.name] for recipe in recipes}
    return source


def open_native(folder: Path) -> tuple[TensorSource, Architecture]:
    """A checkpoint of either kind, checked to be whole, under its own names. Raises UserError."""
    a = read_architecture(assets_folder(folder))
    if checkpoint_kind(folder) == "megatron":
        return open_megatron(iteration_folder(folder), a), a
    source = HuggingFaceSource(folder)
    try:
        check_source(folder, source, a)
    except BaseException:
        source.close()
        raise
    return source, a


def _check_same_names(first: Path, one: TensorSource, second: Path, two: TensorSource) -> None:
    for here, there, a, b in ((first, second, one, two), (second, first, two, one)):
        if only := sorted(set(a.tensors) - set(b.tensors)):
            raise UserError(f"{here}: has {only[0]} and {len(only) - 1} more that {there} has not; compare one model")
    for name, info in one.tensors.items():
        if info.shape != two.tensors[name].shape:
            shapes: tuple[TensorInfo, TensorInfo] = (info, two.tensors[name])
            raise UserError(f"{second}: {name} is {list(shapes[1].shape)}, in {first} {list(shapes[0].shape)}")
