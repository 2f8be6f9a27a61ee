"""The kernels as machine code for H100 and B200, made without a GPU: registers are bounded and nothing is spilled."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_dpop.kernels import gate, logits, rotary

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

BF16, FP32, INT, INDEX, WORDS = "*bf16", "*fp32", "i32", "*i64", "*i32"
REGISTERS = 64  # of a thread: with them an H100's 65,536 hold 1024 threads at once

HEADS = {
    "HEADS": 64,
    "KV_HEADS": 8,
    "HALF": 64,
    "HALF_BLOCK": 64,
    "HEAD_BLOCK": 16,
    "ROTATES": True,
    "GATHERS": True,
    "TURNED": 64,
    "INTERLEAVED": False,
}
KERNELS: dict[str, tuple[Any, list[str], dict[str, Any], int]] = {
    "gate, forward": (gate._forward, [BF16, BF16, INT], {"BLOCK": gate.BLOCK}, 4),
    "gate, backward": (gate._backward, [BF16, BF16, BF16, INT], {"BLOCK": gate.BLOCK}, 4),
    "logits, statistics": (
        logits._take_in,
        [FP32, INDEX, FP32, FP32, FP32, INT, INT, INT],
        {"BLOCK": logits.STATISTICS_BLOCK},
        8,
    ),
    "logits, gradient": (
        logits._gradient,
        [FP32, INDEX, FP32, FP32, BF16, INT, INT, INT],
        {"BLOCK": logits.GRADIENT_BLOCK},
        8,
    ),
    "rotary, forward": (rotary._forward, [BF16] * 3 + [FP32] * 2 + [WORDS] + [BF16] * 3 + [INT] * 8, HEADS, 4),
    "rotary, backward": (rotary._backward, [BF16] * 3 + [FP32] * 2 + [WORDS] * 2 + [BF16] * 3 + [INT] * 2, HEADS, 4),
}


@pytest.mark.parametrize(("architecture", "assembler"), [(90, "ptxas"), (100, "ptxas-blackwell")])
@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles_into_few_registers(name: str, architecture: int, assembler: str, tmp_path: Path) -> None:
    kernel, types, constants, warps = KERNELS[name]
    signature = dict(zip(kernel.arg_names, [*types, *["constexpr"] * len(constants)], strict=True))
    # What the launcher tells the compiler of a 72B's shapes: pointers and strides are multiples of 16.
    aligned = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(types) if kind != "constexpr"}
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(key),): value for key, value in constants.items()},
        attrs=aligned,
    )
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    text = made.asm["ptx"]
    assert re.search(r"ld\.global\.(L1::\S+\.)?v4", text), "loads are not vectors"
    (tmp_path / "kernel.ptx").write_text(text)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / assembler
    target = re.search(r"\.target (\w+)", text)
    assert target is not None
    report = subprocess.run(
        [tool, "-v", f"--gpu-name={target[1]}", "kernel.ptx", "-o", "kernel.cubin"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert re.findall(r"(\d+) bytes spill", report) == ["0", "0"]
    (registers,) = re.findall(r"Used (\d+) registers", report)
    assert int(registers) <= REGISTERS
