"""Imported once by the server that trials are forks of; they need not import again."""

import warnings

from megatron_dpop.runtime.devices import prepare_device

warnings.filterwarnings("ignore", module="megatron|torch")  # of packages that a CPU does without
prepare_device(0)

# What a trial would else import itself: to register the trainer's operators, and to read the model.
import torch._dynamo  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import examples.arithmetic.measure  # noqa: E402, F401
import megatron_dpop.training.train  # noqa: E402, F401
