"""Imported once by the fork server of `tests/distributed.py`; the ranks that it forks need not import again."""

import gc
import os

os.environ["MEGATRON_DPOP_DEVICE"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

from megatron_dpop.runtime.devices import prepare_device

prepare_device(0)

import pandas  # noqa: E402, F401  # what ranks would import when they first use it, this one by pyarrow
import torch._dynamo  # noqa: E402, F401

import megatron_dpop.training.train  # noqa: E402, F401

# A rank's own collections would otherwise write to every object here, and so copy all of this memory.
gc.collect()
gc.freeze()
