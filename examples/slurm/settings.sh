# shellcheck shell=bash
# What your cluster is, for all scripts of this folder: edit this file. Each value can be given in the environment too,
# for one submission: JOB_NODES=8 examples/slurm/train.sbatch config.yaml

# Where and how long. Empty: the cluster's default.
: "${JOB_PARTITION=}"
: "${JOB_ACCOUNT=}"
: "${JOB_TIME=24:00:00}"
: "${JOB_NODES=1}"
: "${JOB_GPUS_PER_NODE=8}"                      # 0: none is asked for
: "${JOB_RANKS_PER_NODE=$JOB_GPUS_PER_NODE}"    # one rank a GPU
: "${JOB_EXTRA=--exclusive --mem 0}"            # further options of sbatch: whole nodes, with all their memory

# Jobs without a GPU (convert.sbatch).
: "${JOB_CPU_PARTITION=$JOB_PARTITION}"
: "${JOB_CPU_EXTRA=--cpus-per-task 8}"

# The ranks get SIGUSR1 this long before the time limit. They finish their step (and a validation that has begun), save
# and leave, and the job is requeued: give it longer than the longest step, validation and save together.
: "${JOB_SIGNAL_SECONDS=600}"

# Logs: JOB_LOGS/NAME-ID.log is rank 0's, from all restarts; JOB_LOGS/NAME-ID/ keeps those of every rank.
: "${JOB_LOGS=logs}"

# The environment that has megatron-dpop: a file to source (a venv's bin/activate), or a container, or neither if python
# on the nodes' PATH has it. With a container the file is not sourced.
: "${JOB_ENVIRONMENT=}"
: "${JOB_CONTAINER=}"                           # pyxis: image name or .sqsh file; apptainer: .sif file
: "${JOB_CONTAINER_KIND=pyxis}"                 # pyxis (enroot) or apptainer
: "${JOB_CONTAINER_MOUNTS=$PWD:$PWD}"           # what a run reads and writes: models, data, runs, this checkout

# The network. Only what is the same on most H100 clusters is set; the rest is for you to uncomment, with its reason.

# Bootstrap and gloo must take an interface on which the nodes reach each other; found wrongly where docker0 or a
# management network comes first.
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0
# Only the adapters beside the GPUs: left to itself NCCL also takes those meant for storage.
# export NCCL_IB_HCA=mlx5_0,mlx5_1,mlx5_2,mlx5_3,mlx5_4,mlx5_5,mlx5_6,mlx5_7
# Ethernet (RoCE v2): the index of the routable GID, which differs by site; `show_gids` lists them.
# export NCCL_IB_GID_INDEX=3

# A lost packet is waited for 4 us * 2^NCCL_IB_TIMEOUT, seven times: 20 (4 s each) survives a link that flaps, and is
# still shorter than a job's minute to notice that a node died.
export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-20}
# Warnings only: INFO writes thousands of lines. For a hang use NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=INIT,NET.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# Megatron-Core overlaps tensor-parallel communication with matrix products by issuing it first; on Hopper and older only
# a single hardware queue keeps that order.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
# Transformer Engine's norms leave these multiprocessors to NCCL, which runs beside them.
export NVTE_FWD_LAYERNORM_SM_MARGIN=${NVTE_FWD_LAYERNORM_SM_MARGIN:-16}
export NVTE_BWD_LAYERNORM_SM_MARGIN=${NVTE_BWD_LAYERNORM_SM_MARGIN:-16}
# Steps have rows of differing lengths: without this, blocks freed by one length do not serve another, and a run that fits
# runs out of memory after hours.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# Compute nodes without a way out wait minutes for the hub before they fail; models are folders by then.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
