"""What hf_to_megatron writes, loaded by Megatron-Core itself at several layouts, gives transformers' logits."""

from itertools import product
from pathlib import Path

import pytest
import torch

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from tests.checkpoint_convert.models import FAMILIES, MIXTURES, save_small
from tests.distributed import run_ranks
from tests.exhaustive import in_ci

TOKENS = 80  # beyond every window and original length of the small models
Sizes = tuple[int, int, int, int]  # tensor, pipeline, expert, expert_tensor
LAYOUTS: list[Sizes] = list(product((1, 2), repeat=4))
IN_CI: list[Sizes] = [(2, 2, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2), (2, 2, 2, 2)]


def megatron_logits(folders: list[str], sizes: Sizes, tokens: list[int]) -> list[list[list[float]]]:
    """On each rank; those of the last stage that are first in their tensor group return [tokens, vocab] per folder."""
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection

    from checkpoint_convert.locate import iteration_folder
    from dpop_base.architectures import read_architecture
    from megatron_dpop.config.layout import ModelLayout
    from megatron_dpop.models.build import build_model, transformer_config
    from megatron_dpop.models.layout import RowLayout
    from megatron_dpop.rows.context import attention_plan

    tensor, pipeline, expert, expert_tensor = sizes
    parallel_state.initialize_model_parallel(
        tensor, pipeline, expert_model_parallel_size=expert, expert_tensor_parallel_size=expert_tensor
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    row = torch.tensor(tokens)
    layout = RowLayout(positions=torch.arange(len(row)), attention=attention_plan(((len(row),),), len(row)))
    found = []
    for folder in map(Path, folders):
        a = read_architecture(folder)
        layout_of_model = ModelLayout(tensor, pipeline, expert=expert, expert_tensor=expert_tensor)
        config = transformer_config(a, layout_of_model, params_dtype=torch.float32)
        (model,) = build_model(a, config, groups, transformer_engine=False)
        state, missing, unexpected = dist_checkpointing.load(
            {"model": model.sharded_state_dict()}, str(iteration_folder(folder)), strict="return_all"
        )
        assert not unexpected
        assert all("_extra_state" in key for key in missing), missing
        model.load_state_dict(state["model"])
        model.eval()  # Megatron trains experts under tensor parallelism with sequence parallelism alone
        with torch.no_grad():
            if not parallel_state.is_pipeline_first_stage():
                hidden = torch.empty(len(row), 1, a.hidden_size)
                dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
                model.set_input_tensor(hidden)
            output = model(row[None], layout.positions[None], None, packed_seq_params=layout)
            if not parallel_state.is_pipeline_last_stage():
                dist.send(output.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
                continue
            shards = [torch.empty_like(output) for _ in range(tensor)]
            dist.all_gather(shards, output.contiguous(), group=groups.tp)
        if groups.tp.rank() == 0:
            found.append(torch.cat(shards, -1)[0, :, : a.vocab_size].tolist())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sizes", in_ci(*IN_CI, of=LAYOUTS), ids="tp{0[0]} pp{0[1]} ep{0[2]} etp{0[3]}".format)
def test_logits_equal_transformers_at_every_layout(sizes: Sizes, tmp_path: Path) -> None:
    tensor, pipeline, expert, expert_tensor = sizes
    families = FAMILIES if expert == expert_tensor == 1 else MIXTURES
    tokens = torch.randint(0, 101, (TOKENS,), generator=torch.Generator().manual_seed(2))
    expected = {}
    for family in families:
        expected[family] = save_small(family, tmp_path / family / "hf").logits(tokens)
        hf_to_megatron(tmp_path / family / "hf", tmp_path / family / "megatron", progress=False)
    folders = [str(tmp_path / family / "megatron") for family in families]
    ranks = pipeline * max(tensor, expert * expert_tensor)
    results = [found for found in run_ranks(megatron_logits, ranks, folders, sizes, tokens.tolist()) if found]
    assert len(results) == ranks // (pipeline * tensor)
    for logits in results:
        for family, found in zip(families, logits, strict=True):
            gap = (torch.tensor(found) - expected[family]).abs().max()
            assert gap < 1e-4, f"{family}: {gap}"


def test_one_family_at_one_layout(tmp_path: Path) -> None:
    tokens = torch.randint(0, 101, (TOKENS,), generator=torch.Generator().manual_seed(2))
    small = save_small("llama-attention-bias", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    [[logits]] = run_ranks(megatron_logits, 1, [str(tmp_path / "megatron")], (1, 1, 1, 1), tokens.tolist())
    torch.testing.assert_close(torch.tensor(logits), small.logits(tokens), atol=1e-4, rtol=0)
