#!/usr/bin/env bash
# What each node of a job runs, inside the container if there is one: one launcher that starts this node's ranks.
set -euo pipefail

# Threads of a rank: what is left of the node's cores, as torchrun would give each of them one.
threads=$((${SLURM_CPUS_ON_NODE:-1} / JOB_RANKS_PER_NODE))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}

# Rank 0 is read in the job's log; every rank has its own file.
shown=''
((SLURM_NODEID > 0)) || shown=0

# The rendezvous is what SLURM says: this is node SLURM_NODEID of SLURM_JOB_NUM_NODES, and ranks are numbered in its order,
# which follows the network's topology.
trap '' USR1 TERM # they are for the launcher and its ranks, which get them too
code=0
python3 -m megatron_dpop.runtime.torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --node-rank "$SLURM_NODEID" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
    --nproc-per-node "$JOB_RANKS_PER_NODE" \
    --log-dir "$RANK_LOGS/node-$SLURM_NODEID" --local-ranks-filter "$shown" \
    "$@" || code=$?
case $code in
    0 | 2 | 3 | 75) ;;
    *) code=1 ;; # the launcher was killed, or could not be started: a restart may help
esac
mkdir -p "$RANK_LOGS/node-$SLURM_NODEID"
echo "$code" >"$RANK_LOGS/node-$SLURM_NODEID/exit-code"
exit "$code"
