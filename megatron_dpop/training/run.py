"""A run, built: what its parts are given, all in one object."""

from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.distributed as dist

from megatron_dpop.checkpoints.digests import digests_by_all_ranks
from megatron_dpop.config import Config
from megatron_dpop.engine.batches import RowSource
from megatron_dpop.engine.engine import Engine, build_engine
from megatron_dpop.runtime.stop import StopRequest
from megatron_dpop.tracking.console import Console
from megatron_dpop.tracking.heartbeat import Heartbeat
from megatron_dpop.tracking.run_folder import RunFolder
from megatron_dpop.training.identity import Identity, identify
from megatron_dpop.training.inputs import Inputs, check_fits_devices
from megatron_dpop.training.weights import StartingWeights


@dataclass
class Run:
    """What was asked for, what was read, where words go, and the model: each rank has one."""

    config: Config
    inputs: Inputs
    stop: StopRequest
    folder: RunFolder
    console: Console
    heartbeat: Heartbeat
    engine: Engine  # with unset weights until `megatron_dpop.training.resuming.load_policy`
    train: RowSource
    validation: RowSource | None
    steps_taken: int = 0  # once the loop has ended
    best_iteration: int | None = None  # the checkpoint to export, where `checkpoint.best` chose one; else the newest

    @cached_property
    def identity(self) -> Identity:
        """What this start found under the config's paths: every byte is read, by all ranks together."""
        return identify(self.config, self.inputs, digests_by_all_ranks, with_weights=True)

    @property
    def starting_weights(self) -> StartingWeights:
        """The weights that training starts from."""
        return StartingWeights(
            self.inputs.model, self.identity.files["model.path"], self.folder.initial, self.console.say
        )

    @property
    def reference_weights(self) -> StartingWeights:
        """The reference's weights: those that training starts from, unless the config names others."""
        if self.inputs.reference_model is None:
            return self.starting_weights
        digests = self.identity.files["reference.model"]
        return StartingWeights(self.inputs.reference_model, digests, self.folder.initial, self.console.say)


def build_run(
    config: Config, inputs: Inputs, device: torch.device, stop: StopRequest | None = None, *, quiet: bool = False
) -> Run:
    """Builds the model and the rows of its data. Raises UserError where training would not fit the GPUs' memory."""
    is_silent = dist.get_rank() != 0
    folder = RunFolder(config)
    heartbeat = Heartbeat(folder.path, silent=is_silent)  # from here on the launcher knows where it is
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        check_fits_devices(
            config,
            inputs.architecture,
            inputs.train,
            devices=dist.get_world_size(),
            device_name=found.name,
            memory_bytes=found.total_memory,
        )
    engine = build_engine(config, inputs.architecture, device)
    source = partial(RowSource, config, engine=engine, weights=inputs.token_weights)
    return Run(
        config=config,
        inputs=inputs,
        stop=stop or StopRequest(),
        folder=folder,
        console=Console(silent=is_silent, quiet=quiet),
        heartbeat=heartbeat,
        engine=engine,
        train=source(inputs.train, shuffle=True),
        validation=source(inputs.validation, shuffle=False) if inputs.validation else None,
    )
