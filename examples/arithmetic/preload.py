"""Imported once by the server that trials are forks of; they need not import again."""

import warnings

from megatron_dpop.runtime.devices import prepare_device

warnings.filterwarnings("ignore", module="megatron|torch")  # of packages that a CPU does without
prepare_device(0)

import examples.arithmetic.measure  # noqa: E402, F401
import megatron_dpop.training.train  # noqa: E402, F401
