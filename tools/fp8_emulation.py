"""What FP8 products make of a model's numbers, on a machine that has none.

Operands of the layers' matrix products are rounded to FP8 (e4m3, as going forward) with Transformer Engine's scales,
and multiplied in the model's own precision. Sums inside the hardware's products are not emulated, nor is the backward
pass.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

LINEARS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
BLOCK = 128  # of blockwise scaling: 1 x 128 of activations, 128 x 128 of weights
LARGEST = torch.finfo(torch.float8_e4m3fn).max


def emulate_fp8(modules: Iterable[nn.Module], recipe: str) -> None:
    """Rounds the weights of all decoder layers' linears once, and from now on what goes into them.

    recipe: tensorwise (one scale a tensor, from its own values), blockwise (one a block), or delayed (one a tensor,
    from the values of the micro-batches so far, this one's left out).
    """
    for module in modules:
        for name, linear in module.named_modules():
            if name.rpartition(".")[2] in LINEARS:
                weight = linear.weight.data
                weight.copy_(_blocks(weight, BLOCK) if recipe == "blockwise" else _rounded(weight, weight.abs().amax()))
                linear.register_forward_pre_hook(_rounding_inputs(recipe))


def _rounding_inputs(recipe: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    history: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = inputs  # [tokens, 1, columns]
        largest = hidden.abs().amax()
        if recipe == "blockwise":
            return _blocks(hidden, 1), *others
        scaled_by = torch.stack(history).amax() if recipe == "delayed" and history else largest
        history.append(largest)
        return _rounded(hidden, scaled_by), *others

    return hook


def _blocks(matrix: Tensor, rows: int) -> Tensor:
    """Each block of `rows` x 128 with a scale of its own; columns are the last dimension."""
    flat = matrix.reshape(-1, matrix.shape[-1])
    padded = nn.functional.pad(flat, (0, -flat.shape[1] % BLOCK, 0, -len(flat) % rows))
    blocks = padded.view(len(padded) // rows, rows, -1, BLOCK)
    rounded = _rounded(blocks, blocks.abs().amax(dim=(1, 3), keepdim=True))
    return rounded.view(padded.shape)[: len(flat), : flat.shape[1]].reshape(matrix.shape)


def _rounded(values: Tensor, largest: Tensor) -> Tensor:
    scale = LARGEST / largest.float().clamp(min=1e-12)
    scaled = (values.float() * scale).clamp(-LARGEST, LARGEST)  # what delayed scaling did not foresee saturates
    return (scaled.to(torch.float8_e4m3fn).float() / scale).to(values.dtype)
