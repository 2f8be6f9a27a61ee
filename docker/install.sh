#!/usr/bin/env bash
# Installs the project from the folder above this one into an image of NVIDIA's PyTorch, and keeps that image's torch:
# Transformer Engine there is built against it. Dockerfile, apptainer.def and examples/skypilot/train.yaml run it.
set -euo pipefail

constraint=$(mktemp)
python3 -c 'import torch; print(f"torch=={torch.__version__}")' >"$constraint"
# In place of the image's own list, which fixes every package that it was made with, newer ones of ours too.
export PIP_CONSTRAINT=$constraint
python3 -m pip install --no-cache-dir --break-system-packages "$(dirname "$0")/.."
[[ "torch==$(python3 -c 'import torch; print(torch.__version__)')" == "$(<"$constraint")" ]] || {
    echo "install.sh: pip has replaced the image's torch" >&2
    exit 1
}
rm "$constraint"
megatron-dpop --version
