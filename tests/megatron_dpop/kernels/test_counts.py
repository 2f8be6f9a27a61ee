"""What our parts of a step launch on a GPU and how many bytes that moves, counted on tensors that hold nothing."""

import torch

from megatron_dpop.logprobs.chunking import default_chunking
from megatron_dpop.logprobs.vocab_parallel import _Options, _VocabParallelLinearScores
from megatron_dpop.models.gate import _FusedGatedSilu
from megatron_dpop.models.gathered import _RotateAndGather
from megatron_dpop.models.layout import Rotation
from megatron_dpop.models.varlen import DeviceBlocks, varlen_blocks
from megatron_dpop.rows.context import attention_plan
from tests.megatron_dpop.kernels.fake_gpu import both_ways, fake_gpu

BF16 = 2  # bytes
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, TOKENS = 8192, 29568, 64, 8, 128, 8192  # of a 72B model's row


def test_a_tile_of_logits_takes_two_launches_forward_and_four_backward() -> None:
    """Beyond them each pass has some that do not grow with the number of tiles."""
    vocabulary = 4 * 8192
    found = []
    with fake_gpu():
        device = torch.device("cuda", 0)
        for scores in (4096, 8192):  # one chunk of tokens, and two
            hidden = torch.empty(scores, HIDDEN, dtype=torch.bfloat16, device=device, requires_grad=True)
            weight = torch.nn.Parameter(torch.empty(vocabulary, HIDDEN, dtype=torch.bfloat16, device=device))
            weight.main_grad = torch.empty(vocabulary, HIDDEN, device=device)
            targets = torch.empty(scores, dtype=torch.int64, device=device)
            chunking = default_chunking(device)
            assert (chunking.tokens, chunking.vocab) == (4096, 4096)
            options = _Options(
                vocab_size=vocabulary,
                group=None,
                reduce_hidden_grad=True,
                entropy=False,
                chunking=chunking,
                fused=True,
            )
            found.append(both_ways(_VocabParallelLinearScores, hidden, weight, targets, options))
    tiles = vocabulary // 4096
    (forward, backward), (two_forward, two_backward) = found
    assert forward.counts["aten.mm.dtype"] == forward.counts["triton.logits._take_in"] == tiles
    assert backward.counts["triton.logits._gradient"] == tiles
    assert backward.counts["aten.addmm.dtype_out"] == 2 * tiles
    # The second chunk's own: hidden's gradient zeroed, rounded and put in its place.
    assert two_forward.number - forward.number == 2 * tiles
    assert two_backward.number - backward.number <= 4 * tiles + 4
    assert forward.number <= 2 * tiles + 24
    assert backward.number <= 4 * tiles + 8


def test_the_gate_moves_what_it_must() -> None:
    with fake_gpu():
        given = torch.empty(TOKENS, 1, 2 * FFN, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        forward, backward = both_ways(_FusedGatedSilu, given)
    assert forward.counts == {"triton.gate._forward": 1}
    assert backward.counts == {"triton.gate._backward": 1}
    assert forward.moved_bytes.total() == 3 * BF16 * TOKENS * FFN
    assert backward.moved_bytes.total() == 5 * BF16 * TOKENS * FFN


def test_rotary_and_gather_move_what_they_must() -> None:
    """Each entry once in, each once out; besides them the angles and the index, less than a tenth."""
    trees = [(185, 95, 95)] * 21
    plan = attention_plan(trees, TOKENS)
    blocks = varlen_blocks(plan)
    gathered = len(blocks.key_index)
    with fake_gpu():
        query, key, value = (
            torch.empty(TOKENS, heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda", requires_grad=True)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        angles = torch.empty(TOKENS, 1, HEAD_DIM // 2, device="cuda")
        rotation = Rotation(angles, angles.clone())
        on_device = DeviceBlocks(
            *(
                torch.empty(len(part), dtype=torch.int32, device="cuda")
                for part in (
                    blocks.key_index,
                    blocks.copy_offsets,
                    blocks.copies,
                    blocks.query_offsets,
                    blocks.key_offsets,
                )
            ),
            blocks.longest_query,
            blocks.longest_key,
        )
        forward, backward = both_ways(_RotateAndGather, query, key, value, rotation, on_device, outputs=3)
    assert forward.counts == {"triton.rotary._forward": 1}
    assert backward.counts["triton.rotary._backward"] == 1
    entries = HEAD_DIM * BF16
    turned = 2 * TOKENS * HEADS * entries
    # A trunk's tokens are read once for each branch, which caches may spare; written once for each in any case.
    least = turned + 2 * KV_HEADS * entries * (TOKENS + gathered)
    assert forward.moved_bytes.total() < 1.1 * least
    assert backward.moved_bytes.total() < 1.1 * least
