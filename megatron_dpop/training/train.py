"""A run from its config to its exported model: build, build, build, train."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from checkpoint_convert.assets import copy_assets
from checkpoint_convert.locate import assets_folder
from checkpoint_convert.lora import Lora, write_adapter_config
from dpop_base.checkpoint_names import ASSETS, iteration_name
from megatron_dpop.checkpoints.complete import has_checkpoint
from megatron_dpop.checkpoints.digests import digests_by_all_ranks
from megatron_dpop.config import Config
from megatron_dpop.config.load import as_dict
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.engine.batches import RowSource, StepData
from megatron_dpop.engine.engine import Engine, build_engine
from megatron_dpop.plan.flops import adapter_parameters
from megatron_dpop.runtime import processes
from megatron_dpop.runtime.peers import watching_peers
from megatron_dpop.runtime.stop import StoppedError, StopRequest, UnhealthyError
from megatron_dpop.tracking.console import Console
from megatron_dpop.tracking.heartbeat import Heartbeat
from megatron_dpop.tracking.run_folder import RunFolder
from megatron_dpop.tracking.weights_and_biases import WandbRun
from megatron_dpop.training.export import Exports
from megatron_dpop.training.identity import Identity, check_same, identify, read_identity, write_identity
from megatron_dpop.training.inputs import Inputs, check_fits_devices
from megatron_dpop.training.kl import MismatchedDataset
from megatron_dpop.training.loop import Loop
from megatron_dpop.training.reference_cache import References
from megatron_dpop.training.resuming import load_policy
from megatron_dpop.training.weights import StartingWeights


def train(config: Config, inputs: Inputs, device: torch.device, stop: StopRequest) -> None:
    """Trains, or goes on where a killed run stopped; every rank calls it. Raises StoppedError once `stop` was asked."""
    run = Run(config, inputs, device, stop)
    with run.told():
        with watching_peers():
            run.train_steps()
        run.finish()


def compute_references(config: Config, inputs: Inputs, device: torch.device, stop: StopRequest) -> None:
    """Computes and caches reference log-probabilities only; every rank calls it. Raises StoppedError as `train`."""
    run = Run(config, inputs, device, stop)
    with run.told():
        with watching_peers():
            run.keep_identity()
            run.step_data()
        processes.shut_down()
        run.end("computed the reference")


class Run:
    """What both commands build, in the order in which it is needed."""

    def __init__(self, config: Config, inputs: Inputs, device: torch.device, stop: StopRequest | None = None) -> None:
        self.config = config
        self.inputs = inputs
        self.stop = stop or StopRequest()
        self.folder = RunFolder(config)
        self.heartbeat = Heartbeat(self.folder.path, silent=dist.get_rank() != 0)
        if device.type == "cuda":
            self._check_memory(device)
        self.engine: Engine = build_engine(config, inputs.architecture, device)
        self.console = Console(silent=dist.get_rank() != 0)
        self.wandb: WandbRun | None = None  # on rank 0
        self.train = self._source(shuffle=True)
        self.validation = self._source(shuffle=False) if inputs.validation else None

    def _check_memory(self, device: torch.device) -> None:
        found = torch.cuda.get_device_properties(device)
        check_fits_devices(
            self.config,
            self.inputs.architecture,
            self.inputs.train,
            devices=dist.get_world_size(),
            device_name=found.name,
            memory_bytes=found.total_memory,
        )

    def _source(self, *, shuffle: bool) -> RowSource:
        dataset = self.inputs.train if shuffle else self.inputs.validation
        assert dataset is not None
        return RowSource(
            dataset,
            self.engine,
            capacity_tokens=self.config.data.row_tokens,
            share_prefix=self.config.data.share_prefix,
            batch=self.config.train.global_batch_pairs,
            seed=self.config.train.seed,
            shuffle=shuffle,
        )

    def train_steps(self) -> None:
        """Everything of a run but its export."""
        self.start()
        train, validation = self.step_data()
        torch.cuda.empty_cache()  # a forward-only pass keeps blocks of other sizes than training needs
        first_step = self.load_policy()
        loop = Loop(
            self.config,
            self.engine,
            self.folder,
            self.inputs.loss,
            self.console,
            self.heartbeat,
            self.stop,
            self.wandb,
        )
        loop.run(train, validation, first_step=first_step)

    @cached_property
    def identity(self) -> Identity:
        """What this start found under the config's paths: every byte is read, by all ranks together."""
        return identify(self.config, self.inputs, digests_by_all_ranks, with_weights=True)

    def keep_identity(self) -> None:
        """For the run that will begin in this folder, perhaps on another day."""
        identity = self.identity
        if dist.get_rank() == 0 and not (self.folder.path / "config.yaml").exists():
            self.folder.path.mkdir(parents=True, exist_ok=True)
            write_identity(self.folder.path, identity)

    def start(self) -> None:
        """Makes the run's folder, with all that its checkpoints need to be converted by themselves.

        Raises UserError where a run is to go on with other files than it began with.
        """
        goes_on = has_checkpoint(self.folder.checkpoints)
        began = read_identity(self.folder.path) if goes_on else None
        identity = self.identity
        if began is not None:
            check_same(began, identity, self.folder.path)
        if self.config.lora is not None:
            trained = adapter_parameters(self.inputs.architecture, self.config.lora)
            self.console.say(f"LoRA: {trained:,} parameters are trained, all others are frozen")
        if dist.get_rank() == 0:
            self.folder.write_start(world_size=dist.get_world_size())
            write_identity(self.folder.path, identity)
            if not goes_on:
                self.exports.set_aside()
            self.folder.write_rows_left_out({"train": self.inputs.train, "validation": self.inputs.validation})
            copy_assets(
                assets_folder(self.inputs.model),
                self.folder.checkpoints / ASSETS,
                self.config.precision.params,
            )
            if self.config.lora is not None:
                self._describe_adapters(self.config.lora)
            if self.config.logging.wandb is not None:
                self.wandb = WandbRun(self.config.logging.wandb, self.folder.path, as_dict(self.config))
                self.console.say(f"Weights & Biases: {self.wandb.place}")
        dist.barrier()

    def _describe_adapters(self, lora: LoraConfig) -> None:
        """Beside the checkpoints, as PEFT does. A base on the hub keeps its name, which PEFT knows too."""
        named = Path(self.config.model.path).expanduser()
        base = str(self.inputs.model.resolve()) if named.is_dir() else self.config.model.path
        kept = Lora(lora.rank, lora.alpha, lora.dropout, frozenset(lora.targets), base)
        write_adapter_config(self.folder.checkpoints, kept, self.inputs.architecture)

    def step_data(self) -> tuple[StepData, StepData | None]:
        """Training and validation data with the reference's log-probabilities, from the cache where it holds them."""
        if not self.inputs.loss.needs_reference:
            return StepData(self.train), StepData(self.validation) if self.validation else None
        weights = self._weights(reference=True)
        caches = References(self.config, self.engine, self.folder, weights, self.console, self.heartbeat, self.stop)

        def referenced(name: str, source: RowSource, steps: int | None) -> StepData:
            reference = caches.get(name, source, steps)
            if not self.inputs.loss.needs_kl:
                return StepData(source, reference)
            other = source.over(MismatchedDataset(source.dataset))
            return StepData(source, reference, StepData(other, caches.get(f"{name}_mismatched", other, steps)))

        train = referenced("train", self.train, self.config.train.steps)
        return train, referenced("validation", self.validation, None) if self.validation else None

    def load_policy(self) -> int:
        """Returns the steps already taken."""
        done = load_policy(self.engine, self.folder.checkpoints, self._weights(), self.console.say)
        if done:
            self.heartbeat.beat("training", saved=iteration_name(done))
        return done

    def _weights(self, *, reference: bool = False) -> StartingWeights:
        """Those that training starts from, or the reference's."""
        model, key = self.inputs.model, "model.path"
        if reference and self.inputs.reference_model is not None:
            model, key = self.inputs.reference_model, "reference.model"
        return StartingWeights(model, self.identity.files[key], self.folder.initial, self.console.say)

    def finish(self) -> None:
        """Exports the trained model; rank 0 does it after the others have left."""
        rank = dist.get_rank()
        processes.shut_down()
        if rank == 0 and self.config.checkpoint.export_hf:
            self._export()
        self.end(f"trained {self.config.train.steps} steps")

    @property
    def exports(self) -> Exports:
        return Exports(self.folder, base=self.inputs.model if self.config.lora else None, say=self.console.say)

    def _export(self) -> None:
        if self.exports.are_whole():
            return
        self.heartbeat.beat("exporting")
        self.stop.leave_at_once("while exporting")
        self.exports.export()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Leaves word in the heartbeat of how this ended, and a last line of a stop."""
        try:
            yield
        except StoppedError as stopped:
            self.heartbeat.beat("stopped")
            self.console.say(f"stopped {stopped}; the same command goes on from there")
            if dist.is_initialized():
                dist.barrier()
                processes.shut_down()
            raise
        except UnhealthyError as unhealthy:
            self.heartbeat.beat("unhealthy", error=str(unhealthy))
            dist.barrier()
            processes.shut_down()
            raise
        except (Exception, CheckpointException) as error:
            self.heartbeat.beat("failed", error=str(error))
            raise

    def end(self, done: str) -> None:
        self.heartbeat.beat("finished")
        self.console.say(f"finished: {done}; see {self.folder.path}")
