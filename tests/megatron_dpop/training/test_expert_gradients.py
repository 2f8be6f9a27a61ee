"""Loss, log-probabilities and every gradient of mixtures are the same at every layout, sharing on and off."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint_convert.models import save_chat_models
from tests.distributed import run_ranks
from tests.exhaustive import in_ci
from tests.megatron_dpop.training.gathered import EXPERT, Arrays, Part, gather, parts_here
from tests.megatron_dpop.training.test_experts import LAYOUTS, starve
from tests.tiny import write_config, write_pairs

RELATIVE = 1e-5
VOCABULARY = 101
STARVED = "mixtral"  # all tokens go to two of its six experts
BUSY = re.compile(rf"{re.escape(EXPERT)}[01]\.")
MODELS = ("qwen3-moe-dense-between", "qwen2-moe", STARVED)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_chat_models(MODELS, tmp_path_factory.mktemp("expert_gradients"))
    starve(folder / STARVED)
    write_pairs(folder / "pairs.jsonl", 12)
    return folder


def _tree(world: Path, model: str, run: str, *, share: bool, **parallel: object) -> dict:
    return write_config(
        world,
        world / model,
        data={"share_prefix": share},
        parallel=parallel,
        train={"global_batch_pairs": 12},
        run={"dir": str(world / f"{run}_{model}_{share}")},
    )


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[str, tuple[str, Part, Arrays]]:
    """By model: the reference's file, and what one rank finds without sharing."""
    trees = [_tree(world, model, "expected", share=False) for model in MODELS]
    tables = []
    for model, own in zip(MODELS, run_ranks(parts_here, 1, [(tree, None) for tree in trees])[0], strict=True):
        # Some chosen answers have lost probability, some not: the penalty is active in a part of the pairs.
        shifts = np.random.default_rng(0).normal(0, 1, own.logps.shape).astype(np.float32)
        tables.append(str(world / f"{model}.npy"))
        np.save(tables[-1], own.logps + shifts)
        shutil.rmtree(world / f"expected_{model}_False")
    found: list[Part] = run_ranks(parts_here, 1, list(zip(trees, tables, strict=True)))[0]
    return {
        model: (table, part, gather([part], vocab_size=VOCABULARY, tied=False))
        for model, table, part in zip(MODELS, tables, found, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("layout", in_ci("tp2_ep2", "cp2_ep2", "ep2_etp2", "tp2_pp2_ep2", of=LAYOUTS))
def test_gradients_do_not_depend_on_the_layout(
    layout: str, world: Path, expected: dict[str, tuple[str, Part, Arrays]]
) -> None:
    ranks, parallel = LAYOUTS[layout]
    models = MODELS if ranks == 2 else MODELS[1:] if ranks == 4 else MODELS[1:2]
    cases = [(model, share) for model in models for share in (True, False)]
    runs = [(_tree(world, model, layout, share=share, **parallel), expected[model][0]) for model, share in cases]
    by_rank: list[list[Part]] = run_ranks(parts_here, ranks, runs)
    for at, (model, share) in enumerate(cases):
        case = f"{model}, sharing {share}"
        _, one, gradients = expected[model]
        parts = [results[at] for results in by_rank]
        assert [part.loss for part in parts] == pytest.approx([one.loss] * ranks, rel=RELATIVE), case
        for part in parts:
            np.testing.assert_allclose(part.logps, one.logps, rtol=RELATIVE, err_msg=case)
        found = gather(parts, vocab_size=VOCABULARY, tied=False)
        assert found.keys() == gradients.keys()
        for name, wanted in gradients.items():
            if EXPERT not in name or model == STARVED:
                assert wanted.any() == (EXPERT not in name or BUSY.search(name) is not None), name
            atol = RELATIVE * np.abs(wanted).max()
            np.testing.assert_allclose(found[name], wanted, rtol=0, atol=atol, err_msg=f"{case} {name}")
