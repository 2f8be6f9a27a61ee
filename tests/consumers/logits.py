"""Saves models' logits for one sequence, as another program computes them: `logits.py PROGRAM OUTPUT FOLDER ...`.

Runs in a process of its own, whose path holds the program's packages.
"""

import sys
from pathlib import Path

import numpy as np

TOKENS = list(range(500, 540))


def ctranslate2_logits(folder: Path, scratch: Path) -> np.ndarray:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(scratch / "ctranslate2"), force=True)
    generator = ctranslate2.Generator(str(scratch / "ctranslate2"), device="cpu", compute_type="float32")
    return np.array(generator.forward_batch([TOKENS]))[0]


def mlx_logits(folder: Path, scratch: Path) -> np.ndarray:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([TOKENS])).astype(mx.float32))[0]


PROGRAMS = {"ctranslate2": ctranslate2_logits, "mlx-lm": mlx_logits}

if __name__ == "__main__":
    program, output, *folders = sys.argv[1:]
    found = {Path(folder).name: PROGRAMS[program](Path(folder), Path(output).parent) for folder in folders}
    np.savez(output, **{name: logits.astype(np.float32) for name, logits in found.items()})
