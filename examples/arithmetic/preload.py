"""Imported once by the server that trials are forks of; they need not import again."""

from megatron_dpop.runtime.devices import prepare_device

prepare_device(0)

import examples.arithmetic.measure  # noqa: E402, F401
import megatron_dpop.training.train  # noqa: E402, F401
