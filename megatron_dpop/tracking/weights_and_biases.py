"""A run at Weights & Biases, one and the same however often the run is started again."""

import json
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError
from dpop_base.extras import missing
from dpop_base.files import write_json
from megatron_dpop.config.schema import WandbConfig

ID_FILE = "wandb.json"


def check_installed(options: WandbConfig | None) -> None:
    """Raises UserError where `logging.wandb` asks for a package that is missing."""
    if options is not None and find_spec("wandb") is None:
        raise UserError(f"logging.wandb: {missing('the package wandb', 'wandb')}, or set the key to null")


class WandbRun:
    """What is logged with a step that the server has already is left out: a resumed run repeats it."""

    def __init__(self, options: WandbConfig, folder: Path, config: dict[str, Any]) -> None:
        """Starts the run, or goes on with it; its own files go to `folder`. Raises UserError where it cannot."""
        import wandb

        known = _run_id(folder)
        try:
            self._run = wandb.init(
                project=options.project,
                entity=options.entity,
                name=options.name or folder.resolve().name,
                id=known,
                resume="allow",
                dir=str(folder),
                config=config,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"logging.wandb: cannot start ({reason}); fix that, or record without a connection: WANDB_MODE=offline"
            ) from None
        self._first_step = self._run.step  # after the last that the server has

    @property
    def place(self) -> str:
        """Where to look: the run's address, or what to do with what is recorded."""
        if self._run.offline:
            return f"recorded in {Path(self._run.dir).parent}; wandb sync uploads it"
        return str(self._run.url)

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self._first_step:
            self._run.log(values, step=step)

    def log_table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of rows with the same columns; it belongs to the step whose numbers are logged next."""
        import wandb

        if step >= self._first_step and rows:
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self._run.log({name: table}, step=step)

    def alert(self, title: str, text: str) -> None:
        """An alert, which people may get as mail."""
        self._run.alert(title=title, text=text)

    def close(self) -> None:
        self._run.finish()


def _run_id(folder: Path) -> str:
    """The id by which this folder's run is known there, made at its first start."""
    path = folder / ID_FILE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except FileNotFoundError:
        made = secrets.token_hex(4)
        write_json(path, {"id": made})
        return made
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not readable; delete it to begin a new run at Weights & Biases") from None
