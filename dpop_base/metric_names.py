"""Names of the metrics that more than one part of the project speaks of."""

VALIDATION = "validation/"  # before the name of a metric of held-out data
SOURCE = "source/"  # before the name of a source and of its own metric

LOSS = "loss"
GRAD_NORM = "grad_norm"

CHOSEN_MINUS_REFERENCE = "logps/chosen_minus_reference"
CHOSEN_LOGP = "logps/chosen"
REJECTED_LOGP = "logps/rejected"
CHOSEN_REWARD = "rewards/chosen"
REJECTED_REWARD = "rewards/rejected"
MARGIN = "rewards/margins"
ACCURACY = "rewards/accuracies"

PENALTY = "dpop/penalty"
ACTIVE_FRACTION = "dpop/active_fraction"
DRIFT = "reference/drift"
LOAD_BALANCE = "moe/load_balance"  # and with a layer after it
BALANCE_LOSS = "moe/balance_loss"
Z_LOSS = "moe/z_loss"
ROUTE_AGREEMENT = "moe/route_agreement"  # the same

STEP_SECONDS = "perf/step_seconds"
PAIRS_PER_SECOND = "perf/pairs_per_second"
TOKENS_PER_SECOND = "perf/tokens_per_second"
MODEL_TFLOPS = "perf/model_tflops_per_device"
MFU = "perf/mfu"
PEAK_MEMORY = "perf/peak_memory_bytes"
STRAGGLER = "perf/straggler"
SLOWEST_RANK = "perf/slowest_rank"
