"""A run from its config to its exported model: build, build, build, train."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from checkpoint_convert.assets import copy_assets
from checkpoint_convert.conversion.journal import is_incomplete
from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.locate import ASSETS, assets_folder, checkpoint_kind, iteration_folder
from checkpoint_convert.lora import Lora, write_adapter_config
from checkpoint_convert.megatron_to_hf import megatron_to_hf
from checkpoint_convert.megatron_to_peft import megatron_to_peft
from megatron_dpop.config import Config
from megatron_dpop.config.load import as_dict
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.flops import adapter_parameters
from megatron_dpop.runtime import processes
from megatron_dpop.runtime.peers import watching_peers
from megatron_dpop.runtime.stop import StoppedError, StopRequest, UnhealthyError
from megatron_dpop.training import checkpoint
from megatron_dpop.training.batches import RowSource, StepData
from megatron_dpop.training.complete import iteration_name, latest_iteration
from megatron_dpop.training.console import Console
from megatron_dpop.training.engine import Engine, build_engine
from megatron_dpop.training.fits import check_fits_devices
from megatron_dpop.training.heartbeat import Heartbeat
from megatron_dpop.training.inputs import Inputs
from megatron_dpop.training.loop import Loop
from megatron_dpop.training.mismatched import MismatchedDataset
from megatron_dpop.training.reference_cache import References
from megatron_dpop.training.run_folder import RunFolder
from megatron_dpop.training.weights_and_biases import WandbRun


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

    def start(self) -> None:
        """Makes the run's folder, with all that its checkpoints need to be converted by themselves."""
        if self.config.lora is not None:
            trained = adapter_parameters(self.inputs.architecture, self.config.lora)
            self.console.say(f"LoRA: {trained:,} parameters are trained, all others are frozen")
        if dist.get_rank() == 0:
            self.folder.write_start(world_size=dist.get_world_size())
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
        model = self._megatron(self.inputs.reference_model or self.inputs.model)
        caches = References(self.config, self.engine, self.folder, model, self.console, self.heartbeat, self.stop)

        def referenced(name: str, source: RowSource, steps: int | None) -> StepData:
            reference = caches.get(name, source, steps)
            if not self.inputs.loss.needs_kl:
                return StepData(source, reference)
            other = source.over(MismatchedDataset(source.dataset))
            return StepData(source, reference, StepData(other, caches.get(f"{name}_mismatched", other, steps)))

        train = referenced("train", self.train, self.config.train.steps)
        return train, referenced("validation", self.validation, None) if self.validation else None

    def load_policy(self) -> int:
        """Loads the last checkpoint, or the starting weights; returns the steps already taken."""
        found = [latest_iteration(self.folder.checkpoints, self.console.say) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found, src=0)  # all ranks go on from what one of them saw
        iteration = found[0]
        if iteration is None or self.engine.adapters:
            checkpoint.load_weights(self.engine, self._megatron(self.inputs.model))
        if iteration is None:
            return 0
        self.console.say(f"resuming after step {iteration} from {self.folder.checkpoints}")
        checkpoint.resume(self.engine, self.folder.checkpoints, iteration)
        self.heartbeat.beat("training", saved=iteration_name(iteration))
        return iteration

    def _megatron(self, model: Path) -> Path:
        """The torch_dist folder of a model; a Hugging Face one is converted once, beside the run."""
        if checkpoint_kind(model) == "huggingface":
            target = self.folder.path / "initial" / model.name
            with processes.first_rank_works() as works:
                if works:
                    hf_to_megatron(model, target, progress=False)
            model = target
        return iteration_folder(model)

    def finish(self) -> None:
        """Exports the trained model; rank 0 does it after the others have left."""
        rank = dist.get_rank()
        processes.shut_down()
        if rank == 0 and self.config.checkpoint.export_hf:
            self._export()
        self.end(f"trained {self.config.train.steps} steps")

    def _export(self) -> None:
        lora = bool(self.engine.adapters)
        if is_exported(self.folder.hf) and (not lora or is_exported(self.folder.adapter)):
            return
        self.heartbeat.beat("exporting")
        self.stop.leave_at_once("while exporting")
        if not is_exported(self.folder.hf):
            base = self.inputs.model if lora else None
            megatron_to_hf(self.folder.checkpoints, self.folder.hf, base=base, progress=False)
            self.console.say(f"exported {self.folder.hf}")
        if lora and not is_exported(self.folder.adapter):
            megatron_to_peft(self.folder.checkpoints, self.folder.adapter, progress=False)
            self.console.say(f"exported {self.folder.adapter}")

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
        except Exception as error:
            self.heartbeat.beat("failed", error=str(error))
            raise

    def end(self, done: str) -> None:
        self.heartbeat.beat("finished")
        self.console.say(f"finished: {done}; see {self.folder.path}")


def is_exported(folder: Path) -> bool:
    """True where a whole export lies; one that was interrupted is continued."""
    return folder.exists() and not is_incomplete(folder)
