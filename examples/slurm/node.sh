#!/usr/bin/env bash
# What each node of a job runs, inside the container if there is one: one torchrun that starts this node's ranks.
set -euo pipefail

# Rank 0 is read in the job's log; every rank has its own file.
shown=0
((SLURM_NODEID > 0)) || shown=0:3
# shellcheck disable=SC2016
export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='[rank ${rank}] '

# Threads of a rank: what is left of the node's cores, as torchrun would give each of them one.
threads=$((${SLURM_CPUS_ON_NODE:-1} / JOB_RANKS_PER_NODE))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}

# The rendezvous is what SLURM says: this is node SLURM_NODEID of SLURM_JOB_NUM_NODES, and ranks are numbered in its order,
# which follows the network's topology.
trap '' USR1 TERM # they are for torchrun and its ranks, which get them too
code=0
python3 -m megatron_dpop.runtime.torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --node-rank "$SLURM_NODEID" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
    --rdzv-id "$SLURM_JOB_ID" \
    --nproc-per-node "$JOB_RANKS_PER_NODE" \
    --log-dir "$RANK_LOGS/node-$SLURM_NODEID" --redirects 3 --tee "$shown" \
    "$@" || code=$?
echo "$code" >"$RANK_LOGS/node-$SLURM_NODEID/exit-code"
exit "$code"
