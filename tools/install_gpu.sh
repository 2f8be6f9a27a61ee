#!/usr/bin/env bash
# Builds and installs Transformer Engine into the active Python environment, against its torch.
#
# Its PyTorch part is published as source. It needs the nvcc of a CUDA 13 toolkit (CUDA_HOME, by default
# /usr/local/cuda) and the headers of NCCL and cuDNN, which came with torch. MAX_JOBS files are compiled at once,
# each in 2 GB of memory.
set -euo pipefail

CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
if [[ ! -x $CUDA_HOME/bin/nvcc ]]; then
    echo "install_gpu.sh: $CUDA_HOME has no bin/nvcc; install a CUDA 13 toolkit, or set CUDA_HOME to where it is" >&2
    exit 2
fi
if ! nvidia=$(python -c 'import torch, nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null); then
    echo "install_gpu.sh: this environment lacks torch with CUDA; run pip install . in it first" >&2
    exit 2
fi
CPATH=$CUDA_HOME/include$(printf ':%s' "$nvidia"/*/include "${CPATH:-}")
LIBRARY_PATH=$(printf '%s:' "$nvidia"/*/lib)$CUDA_HOME/lib64
export CUDA_HOME CPATH=${CPATH%:} LIBRARY_PATH

python -m pip install setuptools wheel ninja
# Built apart from torch, it would be built against another one, and without these headers.
python -m pip install --no-build-isolation "$(dirname "$0")/..[gpu]"
