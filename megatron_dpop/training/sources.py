"""The part of a row that comes from one source, for metrics of its own."""

import numpy as np
from numpy.typing import NDArray

from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.runtime.devices import to_device


def of_examples(
    batch: CompletionBatch, sequence_example: NDArray[np.int64], kept: NDArray[np.bool_]
) -> CompletionBatch:
    """The batch without gradients and with the kept examples only.

    sequence_example [sequences] (the batch's `example`, on the host: no wait for the device), kept [examples].
    """
    chosen = np.flatnonzero(kept[sequence_example])
    renumbered = (np.cumsum(kept) - 1)[sequence_example[chosen]]
    device = batch.logps.device
    index = to_device(chosen, device)
    reference = batch.reference_logps
    return CompletionBatch(
        logps=batch.logps.detach()[index],
        reference_logps=None if reference is None else reference[index],
        lengths=batch.lengths[index],
        example=to_device(renumbered, device),
        preferred=batch.preferred[index],
        num_examples=int(kept.sum()),
    )
