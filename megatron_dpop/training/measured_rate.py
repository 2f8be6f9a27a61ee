"""How fast this machine trains: a few passes at a config's own layout, with random weights, each timed.

`python -m megatron_dpop.training.measured_rate CONFIG RESULT SIZES` is one rank of it. Where the model is large only
some of its layers are built: what counts is the rate of its products, in FLOPs a second of all ranks together, and the
optimizer's seconds for each parameter.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpop_base.architectures import Architecture, read_architecture
from dpop_base.errors import UserError
from dpop_base.files import write_json
from megatron_dpop.config import Config, load_config
from megatron_dpop.config.load import dump_config
from megatron_dpop.plan.flops import training_flops
from megatron_dpop.plan.parameters import model_parameters
from megatron_dpop.plan.workload import ExampleSize
from megatron_dpop.training.alike_pairs import AlikePairs

if TYPE_CHECKING:
    from megatron_dpop.engine.engine import Engine

PASS_FLOPS = 1.5e12  # about, of one pass: seconds on a CPU
ROW_TOKENS = 1024
ENOUGH_SECONDS, MOST_PASSES = 8.0, 5


@dataclass(frozen=True)
class MeasuredRate:
    """What the ranks of a layout reach together on this machine."""

    flops_per_second: float
    optimizer_seconds: float  # of a step of the whole model
    layers: int  # that were built
    passes: int
    tokens: int  # of a pass
    seconds: float  # of all passes that count


def measure_rate(config: Config, shape: Mapping[str, Any], size: ExampleSize) -> MeasuredRate:
    """Starts the layout's ranks, and waits for them. Raises UserError where they fail.

    `shape` is what the model's config.json says: its weights are not read.
    """
    from megatron_dpop.runtime import launch

    with tempfile.TemporaryDirectory(prefix="megatron-dpop-") as folder:
        config = replace(
            config,
            model=replace(config.model, path=folder),
            parallel=replace(config.parallel, first_stage_layers=None, last_stage_layers=None),
            train=replace(config.train, steps=MOST_PASSES, epochs=None),
            optimizer=replace(config.optimizer, warmup_steps=0, warmup_share=None),
        )
        asked, result = Path(folder) / "config.yaml", Path(folder) / "result.json"
        asked.write_text(dump_config(config), encoding="utf-8")
        write_json(Path(folder) / "config.json", dict(shape))
        sizes = [str(value) for value in asdict(size).values()]
        words = [str(asked), str(result), *sizes]
        code = launch.run_ranks(words, config.parallel.fewest_ranks, module=__name__)
        if code != 0 or not result.exists():
            raise UserError("--device cpu: the measurement on this machine failed; what its ranks said is above")
        return MeasuredRate(**json.loads(result.read_text(encoding="utf-8")))


def _measure(config: Config, architecture: Architecture, size: ExampleSize) -> MeasuredRate:
    """Measures as one of the ranks; all return the same."""
    from megatron_dpop.runtime import processes

    device = processes.initialize(config.parallel, seed=config.train.seed)

    from megatron_dpop.engine.batches import RowSource, dataset_shapes
    from megatron_dpop.engine.engine import build_engine
    from megatron_dpop.engine.forward import run_rows

    one = dataset_shapes(AlikePairs(size, 1, vocab_size=architecture.vocab_size), share_prefix=config.data.share_prefix)
    tokens, scores, attended = int(one.row_tokens[0]), int(one.scores[0]), int(one.attended[0])
    pairs = max(1, min(config.data.row_tokens, ROW_TOKENS) // tokens) * config.parallel.pipeline

    def flops(of: Architecture) -> float:
        return training_flops(of, config.lora, tokens=pairs * tokens, scores=pairs * scores, attended=pairs * attended)

    unit = config.parallel.pipeline * (config.parallel.virtual_pipeline or 1)
    depth = architecture.num_layers
    while depth > unit and flops(first_layers(architecture, depth)) > PASS_FLOPS:
        depth = max(unit, depth // 2 // unit * unit)
    built = first_layers(architecture, depth)
    config = replace(config, train=replace(config.train, global_batch_pairs=pairs))
    engine = build_engine(config, built, device)
    _set_weights(engine)
    source = RowSource(config, AlikePairs(size, pairs, vocab_size=built.vocab_size), engine, shuffle=False)
    rows = source.rows(0, None)

    def timed_pass() -> tuple[float, float]:
        started = time.perf_counter()
        engine.zero_gradients()
        run_rows(engine, rows, lambda row, logps: (logps.sum(), None), forward_only=False, examples=pairs)
        computed = time.perf_counter()
        engine.optimizer.step()
        return computed - started, time.perf_counter() - computed

    timed_pass()  # the first one allocates
    passes: list[tuple[float, float]] = []
    while len(passes) < MOST_PASSES and not _agreed(sum(map(sum, passes)) > ENOUGH_SECONDS):
        passes.append(timed_pass())
    computing, updating = (statistics.median(part) for part in zip(*passes, strict=True))
    processes.shut_down()
    return MeasuredRate(
        flops_per_second=flops(built) / computing,
        optimizer_seconds=updating * model_parameters(architecture) / model_parameters(built),
        layers=depth,
        passes=len(passes),
        tokens=pairs * tokens,
        seconds=sum(map(sum, passes)),
    )


def first_layers(architecture: Architecture, count: int) -> Architecture:
    """Returns a model of its first layers alone."""

    def kept(layers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(layer for layer in layers if layer < count)

    experts = architecture.experts
    return replace(
        architecture,
        num_layers=count,
        full_attention_layers=kept(architecture.full_attention_layers),
        unrotated_layers=kept(architecture.unrotated_layers),
        experts=None if experts is None else replace(experts, dense_layers=kept(tuple(experts.dense_layers))),
    )


def _set_weights(engine: "Engine") -> None:
    """Sets numbers of the usual size: memory as it was found may hold ones that take a CPU far longer."""
    import torch

    with torch.no_grad():
        for module in engine.modules:
            for weight in module.parameters():
                weight.normal_(std=0.02) if weight.dim() > 1 else weight.fill_(1.0)
    engine.optimizer.reload_model_params()


def _agreed(enough: bool) -> bool:
    """Lets rank 0's clock decide for all."""
    import torch.distributed as dist

    said = [enough]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def _main(asked: str, result: str, *sizes: str) -> None:
    from megatron_dpop.runtime.rank import Rank

    config = load_config(Path(asked))
    architecture = read_architecture(Path(config.model.path))
    found = _measure(config, architecture, ExampleSize(*map(int, sizes)))
    if Rank.from_environment().rank == 0:
        write_json(Path(result), asdict(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
