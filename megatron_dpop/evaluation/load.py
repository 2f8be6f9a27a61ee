"""A model for the harness: transformers' on this machine, or vLLM where it is installed."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError, first_line
from dpop_base.extras import install_command
from megatron_dpop.evaluation.subject import Subject


def load_model(subject: Subject, *, backend: str, batch_size: int | str, arguments: str) -> Any:
    """`arguments`: the harness's, such as "dtype=float32". Raises UserError where it cannot be loaded."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading weights: it runs into the harness's own
    try:
        from lm_eval.utils import simple_parse_args_string

        kind, ours = _vllm() if backend == "vllm" else _transformers()
    except ImportError as error:
        raise UserError(f"eval: {first_line(error)}; install it with: {install_command('eval')}") from None
    ours |= {"pretrained": str(subject.model), "batch_size": batch_size, "trust_remote_code": False}
    try:
        model = kind(**{**ours, **simple_parse_args_string(arguments)})
    except TypeError as error:
        raise UserError(f"--model-args: {first_line(error)}; give the harness's arguments as key=value,...") from None
    except Exception as error:  # transformers raises nearly anything for a folder that is damaged
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{subject.model}: is code of its own (auto_map), which is not run unless you say so: read it, then "
                "add trust_remote_code=True to --model-args"
            ) from None
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise UserError(
            f"{subject.model}: cannot be loaded ({first_line(error)}); export or download it again"
        ) from None
    if subject.chat_template not in (None, "none"):
        model.tokenizer.chat_template = Path(subject.chat_template).read_text(encoding="utf-8")
    return model


def _transformers() -> tuple[type, dict[str, Any]]:
    import torch

    from megatron_dpop.evaluation.paced import PacedModel

    # The harness's own choice is "cuda" whatever the machine has.
    return PacedModel, {"device": "cuda"} if torch.cuda.is_available() else {"device": "cpu", "dtype": faster_dtype()}


def _vllm() -> tuple[type, dict[str, Any]]:
    if find_spec("vllm") is None:
        raise UserError(
            "--backend: vLLM is not installed; install it on a machine with a GPU (docs.vllm.ai says how), "
            "or leave the option out"
        )
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM, {}


def faster_dtype() -> str:
    """Which of the two a CPU multiplies faster, seen in products of one token a sequence and of many.

    A CPU with matrix units for bf16 (AMX) answers twice as fast in it as in fp32; one without emulates it.
    """
    import torch

    def seconds(dtype: torch.dtype) -> float:
        weight = torch.ones(2048, 1024, dtype=dtype)
        few, many = (torch.ones(rows, 1024, dtype=dtype) for rows in (8, 512))
        found = []
        for _ in range(4):
            started = time.perf_counter()
            for _ in range(8):
                few @ weight.T
            many @ weight.T
            found.append(time.perf_counter() - started)
        return min(found)

    return "bfloat16" if seconds(torch.bfloat16) < seconds(torch.float32) else "float32"
