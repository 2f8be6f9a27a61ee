"""What a run keeps on the disk: reckoned before it starts, counted afterwards, and what of it can be removed."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dpop_base.architectures import Architecture
from dpop_base.checkpoint_names import iteration_name
from dpop_base.run_names import CHECKPOINTS, INITIAL
from megatron_dpop.checkpoints.complete import complete_iterations, saved_iterations
from megatron_dpop.checkpoints.digests import digests_here
from megatron_dpop.checkpoints.intact import damage
from megatron_dpop.config import Config
from megatron_dpop.plan.choice import BYTES
from megatron_dpop.plan.flops import adapter_parameters
from megatron_dpop.plan.parameters import model_parameters

MASTER_BYTES = 4  # of each parameter, in the optimizer
UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Expected:
    """Bytes that a run will have written."""

    checkpoint: int
    checkpoints: int  # how many stay
    others: int  # exports, and the starting weights converted

    @property
    def total(self) -> int:
        return self.checkpoint * self.checkpoints + self.others


def expected(config: Config, architecture: Architecture, *, converts: bool) -> Expected:
    """Reckons by parameters: weights, and of what is trained the master weights and two moments.

    converts: whether the starting weights are converted into the run's folder, since they come from Hugging Face.
    """
    whole = model_parameters(architecture)
    trained = adapter_parameters(architecture, config.lora) if config.lora is not None else whole
    weights = BYTES[config.precision.params]
    state = MASTER_BYTES + 2 * BYTES[config.optimizer.state]
    steps, options = config.train.steps, config.checkpoint
    saves = -(-steps // options.every)
    # While one is saved the oldest is still there, but not afterwards; the best one stays besides.
    kept = min(saves, options.keep) + (1 if options.best is not None and saves > options.keep else 0)
    exported = whole * weights if options.export_hf else 0
    return Expected((weights + state) * trained, kept, exported + (whole * weights if converts else 0))


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files below a folder."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(entry.lstat().st_size for entry in path.rglob("*") if not entry.is_dir())


def in_units(num_bytes: float) -> str:
    """Writes a number of bytes as disks are sold: 4.8 MB."""
    for unit in UNITS[:-1]:
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} {UNITS[-1]}"


def kept(folder: Path) -> str:
    """Says what lies in a run's folder, largest first, with sizes."""
    sizes = {entry.name + "/" * entry.is_dir(): size_of(entry) for entry in folder.iterdir()}
    shown = [f"{name} {in_units(size)}" for name, size in sorted(sizes.items(), key=lambda item: -item[1])][:4]
    count = len(saved_iterations(folder / CHECKPOINTS))
    shown = [f"{part} ({count} of them)" if part.startswith("checkpoints/") else part for part in shown]
    return f"{in_units(sum(sizes.values()))} in {folder}: {', '.join(shown)}"


def before(config: Config, need: Expected) -> str:
    """Says what a run will keep, and what room there is."""
    place = Path(config.run.dir).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    of_each = f"{need.checkpoints} x {in_units(need.checkpoint)} of checkpoints"
    line = f"disk: about {in_units(need.total)} in {config.run.dir} ({of_each}), {in_units(free)} free"
    return line if need.total < free else f"{line}: too little; lower checkpoint.keep, or give another run.dir"


def removable(folder: Path, *, keep: int, best: int | None) -> Iterator[Path]:
    """Yields what a run that has ended can do without: older checkpoints, and its starting weights as converted.

    The newest `keep` checkpoints that hold the bytes that were written stay, whatever is newer than the first of them,
    and the best one. They are read for it: older ones are all that a run has left where the newest is damaged. Nothing
    is yielded of a run that has no whole checkpoint.
    """
    checkpoints = folder / CHECKPOINTS
    saved = saved_iterations(checkpoints)
    complete = complete_iterations(checkpoints, lambda line: None) if saved else iter(())
    intact = (step for step in complete if damage(checkpoints / iteration_name(step), digests_here) is None)
    staying = list(islice(intact, keep))
    if not staying:
        return
    for iteration in saved:
        if iteration not in (*staying, best) and iteration < staying[0]:
            yield checkpoints / iteration_name(iteration)
    if (folder / INITIAL).is_dir():
        yield folder / INITIAL
