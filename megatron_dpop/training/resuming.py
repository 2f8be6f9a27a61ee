"""How a run begins, or goes on: its folder made ready, and its weights loaded, the newest checkpoint's or the first."""

from pathlib import Path

import torch.distributed as dist

from checkpoint_convert.assets import copy_assets
from checkpoint_convert.locate import assets_folder
from checkpoint_convert.lora import Lora, write_adapter_config
from dpop_base.checkpoint_names import ASSETS, iteration_name
from dpop_base.errors import UserError
from dpop_base.run_names import CONFIG
from megatron_dpop.checkpoints import checkpoint
from megatron_dpop.checkpoints.complete import complete_iterations, has_checkpoint
from megatron_dpop.checkpoints.digests import digests_by_all_ranks
from megatron_dpop.checkpoints.intact import damage
from megatron_dpop.config.load import as_dict
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.flops import adapter_parameters
from megatron_dpop.tracking.weights_and_biases import WandbRun
from megatron_dpop.training.export import exports_of
from megatron_dpop.training.identity import check_same, read_identity, write_identity
from megatron_dpop.training.run import Run


def begin(run: Run) -> WandbRun | None:
    """Makes the run's folder, with all that its checkpoints need to be converted by themselves; every rank calls it.

    Returns the run at Weights & Biases, on rank 0 and where the config asks for one. Raises UserError where a run is
    to go on with other files than it began with.
    """
    goes_on = has_checkpoint(run.folder.checkpoints)
    began = read_identity(run.folder.path) if goes_on else None
    identity = run.identity
    if began is not None:
        check_same(began, identity, run.folder.path)
    if run.config.lora is not None:
        trained = adapter_parameters(run.inputs.architecture, run.config.lora)
        run.console.say(f"LoRA: {trained:,} parameters are trained, all others are frozen")
    wandb = None
    if dist.get_rank() == 0:
        run.folder.write_start(world_size=dist.get_world_size())
        write_identity(run.folder.path, identity)
        if not goes_on:
            exports_of(run).set_aside()
        run.folder.write_rows_left_out({"train": run.inputs.train, "validation": run.inputs.validation})
        copy_assets(assets_folder(run.inputs.model), run.folder.checkpoints / ASSETS, run.config.precision.params)
        if run.config.lora is not None:
            _describe_adapters(run, run.config.lora)
        wandb = _at_weights_and_biases(run)
    dist.barrier()
    return wandb


def keep_identity(run: Run) -> None:
    """Writes what this start found, for the run that will begin in this folder, perhaps on another day."""
    identity = run.identity
    if dist.get_rank() == 0 and not (run.folder.path / CONFIG).exists():
        run.folder.path.mkdir(parents=True, exist_ok=True)
        write_identity(run.folder.path, identity)


def load_policy(run: Run) -> int:
    """Fills the model; returns the steps already taken. Every rank calls it. Raises UserError."""
    done = _newest_checkpoint(run)
    if done is None:
        if not run.engine.adapters:
            run.starting_weights.load(run.engine)
        return 0
    run.heartbeat.beat("training", saved=iteration_name(done))
    return done


def _newest_checkpoint(run: Run) -> int | None:
    """Loads the newest checkpoint that is whole and returns its iteration; None where a run has none yet.

    Loading finds damage in a tensor as it reads it: the checkpoint before is then loaded over all that was taken.
    """
    engine, checkpoints, say = run.engine, run.folder.checkpoints, run.console.say
    if engine.adapters:
        run.starting_weights.load(engine)  # a checkpoint holds the adapters alone
    candidates = complete_iterations(checkpoints, say)
    any_damaged = False
    while True:
        found = [next(candidates, None) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found, src=0)  # all ranks go on from what one of them saw
        iteration = found[0]
        if iteration is None:
            break
        folder = checkpoints / iteration_name(iteration)
        reason = damage(folder, digests_by_all_ranks, tensors=False)
        if reason is None:
            try:
                checkpoint.resume(engine, checkpoints, iteration)
            except UserError as error:
                reason = str(error)
            else:
                say(f"resuming after step {iteration} from {checkpoints}")
                return iteration
        any_damaged = True
        say(f"passing over {folder}: {reason}")
    if any_damaged:
        raise UserError(f"{checkpoints}: no checkpoint can be loaded; restore one, or remove them to begin anew")
    return None


def _describe_adapters(run: Run, lora: LoraConfig) -> None:
    """Writes PEFT's config beside the checkpoints. A base on the hub keeps its name, which PEFT knows too."""
    named = Path(run.config.model.path).expanduser()
    base = str(run.inputs.model.resolve()) if named.is_dir() else run.config.model.path
    kept = Lora(lora.rank, lora.alpha, lora.dropout, frozenset(lora.targets), base)
    write_adapter_config(run.folder.checkpoints, kept, run.inputs.architecture)


def _at_weights_and_biases(run: Run) -> WandbRun | None:
    if run.config.logging.wandb is None:
        return None
    wandb = WandbRun(run.config.logging.wandb, run.folder.path, as_dict(run.config))
    run.console.say(f"Weights & Biases: {wandb.place}")
    return wandb
