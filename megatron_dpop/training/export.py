"""The trained model beside its checkpoints: exported once from the checkpoint that it belongs to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from checkpoint_convert.conversion.journal import OtherConversionError, is_incomplete
from checkpoint_convert.locate import iteration_folder
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.megatron_to_peft import megatron_to_peft
from checkpoint_convert.rules.adapters import peft_obstacle
from dpop_base.checkpoint_names import iteration_name
from dpop_base.files import write_json
from megatron_dpop.checkpoints.digests import digests_here, named_digests
from megatron_dpop.checkpoints.intact import content_files, read_checksums
from megatron_dpop.tracking.run_folder import RunFolder
from megatron_dpop.training.identity import weights_id
from megatron_dpop.training.run import Run

RECORD = "exports.json"  # by folder, which checkpoint it was exported from


def export_model(run: Run) -> None:
    """Exports the trained model, unless that is done already. One process calls it, alone."""
    exports = exports_of(run)
    if exports.are_whole():
        return
    run.heartbeat.beat("exporting")
    run.stop.leave_at_once("while exporting")
    exports.export()


def exports_of(run: Run) -> "Exports":
    lora = run.config.lora
    return Exports(
        run.folder,
        base=run.inputs.model if lora else None,
        say=run.console.say,
        iteration=run.best_iteration,
        no_adapter=peft_obstacle(run.inputs.architecture, frozenset(lora.targets)) if lora else None,
    )


class Exports:
    """`hf/`, and `adapter/` of a LoRA run. One process does it."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        base: Path | None,
        say: Callable[[str], None],
        iteration: int | None = None,
        no_adapter: str | None = None,
    ) -> None:
        """`base`: the model that LoRA adapters belong to; `iteration`: the checkpoint, None for the newest;
        `no_adapter`: why the adapter is not exported alone.
        """
        self.folder = folder
        self.base = base
        self.say = say
        self.no_adapter = no_adapter
        self.checkpoint = folder.checkpoints if iteration is None else folder.checkpoints / iteration_name(iteration)

    def set_aside(self) -> None:
        """Moves away, before a run begins anew, what was exported from another one."""
        for target in (self.folder.hf, self.folder.adapter):
            if target.exists() and not is_incomplete(target):
                self._set_aside(target)

    def are_whole(self) -> bool:
        return all(self._is_done(target) for target in self._targets())

    def export(self) -> None:
        """Does what is missing. Raises UserError."""
        for target, convert in self._targets().items():
            if not self._is_done(target):
                self._export(target, convert)
        if self.no_adapter is not None:
            self.say(f"no {self.folder.adapter}: {self.no_adapter}; {self.folder.hf} is the merged model")

    def _targets(self) -> dict[Path, Callable[[], None]]:
        hf, adapter = self.folder.hf, self.folder.adapter
        targets: dict[Path, Callable[[], None]] = {
            hf: lambda: megatron_to_hf(self.checkpoint, hf, base=self.base, progress=False)
        }
        if self.base is not None and self.no_adapter is None:
            targets[adapter] = lambda: megatron_to_peft(self.checkpoint, adapter, progress=False)
        return targets

    def _export(self, target: Path, convert: Callable[[], None]) -> None:
        try:
            convert()
        except OtherConversionError:
            if is_incomplete(target):
                shutil.rmtree(target)  # a part of another checkpoint's export
            else:
                self._set_aside(target)
            convert()
        write_json(self.folder.path / RECORD, {**self._recorded(), target.name: self._source()})
        self.say(f"exported {target} from {self._source().split()[0]}")

    def _is_done(self, target: Path) -> bool:
        whole = target.exists() and not is_incomplete(target)
        return whole and self._recorded().get(target.name) == self._source()

    def _source(self) -> str:
        """The checkpoint's name and content."""
        iteration = iteration_folder(self.checkpoint)
        try:
            digests = read_checksums(iteration)
        except ValueError:
            digests = None
        return f"{iteration.name} {weights_id(digests or named_digests(content_files(iteration), digests_here))}"

    def _recorded(self) -> dict[str, str]:
        try:
            return dict(json.loads((self.folder.path / RECORD).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def _set_aside(self, target: Path) -> None:
        """Nothing that was exported is deleted: it may be the only copy."""
        number = next(n for n in range(1, 10**6) if not target.with_name(f"{target.name}.before-{n}").exists())
        aside = target.with_name(f"{target.name}.before-{number}")
        target.rename(aside)
        self.say(f"{target} was exported from another checkpoint; it is now {aside}")
