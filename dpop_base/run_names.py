"""Names in a run's folder that several parts of the project look for."""

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
HEARTBEAT = "heartbeat.json"
IDENTITY = "identity.json"
BEST = "best.json"

CHECKPOINTS = "checkpoints"
INITIAL = "initial"  # the starting weights as converted
HF = "hf"  # the exported model
