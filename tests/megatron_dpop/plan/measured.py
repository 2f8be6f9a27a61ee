"""Trains a model of a given shape on made-up pairs in this rank, and counts what it allocates and sends."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpop_base.architectures import Architecture
from megatron_dpop.config import Config
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.data.examples import TokenizedExample
from megatron_dpop.plan.from_config import choice_of, pair_workload
from megatron_dpop.plan.workload import Workload


@dataclass(frozen=True)
class Pairs:
    """Equal pairs, packed into rows that they fill as far as whole pairs do."""

    row_tokens: int
    rows: int  # of each data-parallel rank
    prompt_tokens: int = 60
    completion_tokens: int = 100
    common_tokens: int = 50
    share_prefix: bool = True

    @property
    def pairs_per_row(self) -> int:
        return int(self.row_tokens // self.workload(self.config(pairs=1)).packed.tokens)

    def config(self, *, pairs: int, **sections: dict) -> Config:
        """A config whose steps train on so many pairs."""
        tree = {
            "model": {"path": "unused"},
            "data": {"train": "unused", "row_tokens": self.row_tokens, "share_prefix": self.share_prefix},
            **sections,
        }
        tree["train"] = {**tree.get("train", {}), "global_batch_pairs": pairs}
        return config_from_dict(tree, origin="test")

    def step_config(self, *, data: int = 1, **sections: dict) -> Config:
        """A config whose steps are these rows on each of `data` replicas."""
        return self.config(pairs=self.pairs_per_row * self.rows * data, **sections)

    def workload(self, config: Config) -> Workload:
        return pair_workload(
            config, prompt=self.prompt_tokens, completion=self.completion_tokens, common=self.common_tokens
        )

    def examples(self, vocab_size: int) -> list[TokenizedExample]:
        """The pairs of one row."""
        draw = np.random.default_rng(0)

        def tokens(count: int) -> np.ndarray:
            return draw.integers(1, vocab_size // 2, count, dtype=np.int32)

        def pair() -> TokenizedExample:
            chosen = tokens(self.completion_tokens)
            rejected = chosen.copy()
            rejected[self.common_tokens :] += 1
            return TokenizedExample(
                tokens(self.prompt_tokens), (chosen, rejected), (True, False), "test", self.common_tokens
            )

        return [pair() for _ in range(self.pairs_per_row)]


def training_peak_bytes(architecture: Architecture, config: Config, pairs: Pairs) -> int:
    """Most bytes allocated at once by the engine's construction and two training steps, in this rank."""
    from megatron_dpop.runtime import processes

    device = processes.initialize(config.parallel, seed=0)
    import torch

    from megatron_dpop.runtime.devices import on_gpu
    from tests.allocations import AllocationCounter

    def train() -> None:
        engine, rows = engine_and_rows(architecture, config, pairs, device)
        _step(engine, rows)
        _step(engine, rows)

    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
        train()
        return torch.cuda.max_memory_allocated()
    with AllocationCounter() as counter:
        train()
    return counter.peak_bytes


def training_sent_bytes(architecture: Architecture, config: Config, pairs: Pairs) -> float:
    """Bytes that this rank's collectives and transfers send in one training step."""
    from megatron_dpop.runtime import processes

    device = processes.initialize(config.parallel, seed=0)
    from tests.collectives import CollectiveCounter

    engine, rows = engine_and_rows(architecture, config, pairs, device)
    with CollectiveCounter() as counter:
        _step(engine, rows)
    return counter.sent_bytes


def engine_and_rows(architecture: Architecture, config: Config, pairs: Pairs, device: Any) -> tuple[Any, list[Any]]:
    """The engine with random weights, and the rows of one of its steps."""
    import torch

    from megatron_dpop.engine.batches import row_batch
    from megatron_dpop.engine.engine import build_engine
    from megatron_dpop.rows.row import build_row

    engine = build_engine(config, architecture, device)
    for module in engine.modules:
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    examples = pairs.examples(architecture.vocab_size)
    row_tokens = pairs.workload(config).row(choice_of(config)).tokens
    row = build_row(examples, range(len(examples)), row_tokens=row_tokens, share_prefix=pairs.share_prefix)
    return engine, [row_batch(row, None, engine) for _ in range(pairs.rows)]


def _step(engine: Any, rows: list[Any]) -> None:
    from megatron_dpop.engine.forward import logps_only, run_rows

    engine.zero_gradients()
    run_rows(engine, rows, logps_only, forward_only=False)
    engine.optimizer.step()
