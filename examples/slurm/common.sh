# shellcheck shell=bash
# shellcheck disable=SC2034 # variables that the scripts read
# What the scripts of this folder share. A script runs twice: started by a user it checks and submits itself; started by
# SLURM, from a copy that SLURM made of it, it does the job.

set -euo pipefail

# Exit codes of `megatron-dpop` (docs/cluster.md).
readonly FAILED=1 BAD_INPUT=2 UNHEALTHY=3 STOPPED=75
# A job that was restarted so often without getting further would go on so for ever.
readonly MOST_IDLE_RESTARTS=3
# How often a job looks at its nodes, and how long the others may go on once one has failed.
readonly POLL_SECONDS=2 SECONDS_TO_END=20

scripts=${MEGATRON_DPOP_SCRIPTS:?set by the script that sources this file}
script_name=${MEGATRON_DPOP_SCRIPT:-$(basename "$0")}
set -a # a job does what the settings said when it was submitted
# shellcheck source=examples/slurm/settings.sh
source "$scripts/settings.sh"
set +a

say() { echo "$script_name: $*"; }

fail() {
    echo "$script_name: error: $*" >&2
    exit "$BAD_INPUT"
}

yaml_string() {  # TEXT: the same text where YAML is read, as in --section.key=VALUE, whatever signs it has
    printf "'%s'" "${1//\'/\'\'}"
}

in_job() { [[ -n ${SLURM_JOB_ID:-} && -n ${MEGATRON_DPOP_SCRIPT:-} ]]; }

# ---- before a job: check, then submit ----

read_options() {  # "$@" of the script: its own options, which come first; leaves the others in `words`
    test_only='' after='' name='' from=1 tiny=()
    while [[ ${1:-} == --* ]]; do
        case $1 in
            --test-only) test_only=1 ;;
            --after) after=${2:?--after needs a job id} && shift ;;
            --name) name=${2:?--name needs a word} && shift ;;
            --tiny) tiny=(--tiny "${2:?--tiny needs a folder}") && shift ;;
            --from) from=${2:?--from needs a number} && shift ;;
            --help) usage 0 ;;
            *) usage "$BAD_INPUT" ;;
        esac
        shift
    done
    words=("$@")
}

usage() {  # EXIT CODE: the comment at the script's top
    sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
    exit "$1"
}

in_environment() {  # COMMAND...: on this machine, in the environment of settings.sh
    if [[ $JOB_CONTAINER && $JOB_CONTAINER_KIND == apptainer ]]; then
        apptainer exec --bind "$JOB_CONTAINER_MOUNTS" "$JOB_CONTAINER" "$@"
    elif [[ $JOB_ENVIRONMENT && ! $JOB_CONTAINER ]]; then
        # shellcheck disable=SC1090
        (source "$JOB_ENVIRONMENT" && "$@")
    else
        "$@"
    fi
}

check() {  # [--] WORDS [-- WORDS]...: dry-runs `megatron-dpop WORDS`; prints its result, exits where it is refused
    local code=0
    say "checking with $((JOB_NODES * JOB_RANKS_PER_NODE)) ranks on $JOB_NODES nodes"
    if [[ $JOB_CONTAINER && $JOB_CONTAINER_KIND == pyxis ]] && ! python3 -c 'import megatron_dpop' 2>/dev/null; then
        say "not checked here: megatron-dpop is in the container alone; the job will check before it starts its ranks"
        return
    fi
    in_environment python3 "$scripts/check.py" $((JOB_NODES * JOB_RANKS_PER_NODE)) "$@" || code=$?
    ((code == 0)) || exit "$code"
}

check_run() {  # as check; sets MEGATRON_DPOP_RUN_DIR to the folder of the first run
    local checked code=0
    checked=$(check "$@") || code=$?
    echo "$checked"
    ((code == 0)) || exit "$code"
    MEGATRON_DPOP_RUN_DIR=$(sed -n 's/^run\.dir: //p' <<<"$checked" | head -n 1) # empty where it was not checked here
}

job_options() {  # NAME NODES GPUS-PER-NODE PARTITION EXTRA: fills `options`
    local logs=${JOB_LOGS//%/%%} # SLURM has signs of its own in names of files
    options=(
        --job-name "${1//\//-}" --nodes "$2" --ntasks-per-node 1 --time "$JOB_TIME"
        --requeue --open-mode append --output "$logs/%x-%j.log" --signal "USR1@$JOB_SIGNAL_SECONDS"
        --export ALL --kill-on-invalid-dep yes
    )
    (($3 == 0)) || options+=(--gpus-per-node "$3")
    [[ -z $4 ]] || options+=(--partition "$4")
    [[ -z $JOB_ACCOUNT ]] || options+=(--account "$JOB_ACCOUNT")
    [[ -z $after ]] || options+=(--dependency "afterok:$after")
    local extra
    read -ra extra <<<"$5"
    options+=("${extra[@]}")
}

submit() {  # SCRIPT WORDS...: sets `job`; with --test-only, only says what SLURM would do
    local script=$1
    shift
    mkdir -p "$JOB_LOGS"
    export MEGATRON_DPOP_SCRIPTS=$scripts MEGATRON_DPOP_SCRIPT=${script##*/} MEGATRON_DPOP_RUN_DIR
    sbatch --test-only "${options[@]}" "$script" "$@" 2>&1 | sed "s/^/$script_name: /" ||
        fail "SLURM would not take this job; fix settings.sh"
    job=''
    if [[ $test_only ]]; then
        say "would submit: sbatch ${options[*]} $script $*"
        return
    fi
    job=$(sbatch --parsable "${options[@]}" "$script" "$@") || fail "SLURM did not take this job"
    say "submitted job $job"
    unset MEGATRON_DPOP_SCRIPT
}

# ---- in a job ----

free_port() {  # a port of this node that nobody listens on; other jobs of the node begin to look elsewhere
    local port=$((20000 + SLURM_JOB_ID % 10000))
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "$port"
}

first_node_address() {  # by the name or number by which SLURM itself reaches it, whatever the nodes are called
    local first
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p'
}

where() { printf '%s' "$(saved | grep . || echo 'the beginning')"; }

saved() {  # what a restart would go on from
    sed -n 's/^ *"saved": "\(.*\)",\{0,1\}$/\1/p' "${MEGATRON_DPOP_RUN_DIR:-}/heartbeat.json" 2>/dev/null || true
}

begin='' idle=0

count_idle_restarts() {  # sets `begin`, where this start goes on from, and `idle`, how many restarts before it got no further
    local file=$job_logs/restarts before=''
    begin=$(saved) idle=0
    [[ ! -f $file ]] || { read -r idle && IFS= read -r before; } <"$file" || true
    if ((${SLURM_RESTART_COUNT:-0} > 0)) && [[ $begin == "$before" ]]; then idle=$((idle + 1)); else idle=0; fi
    printf '%s\n%s\n' "$idle" "$begin" >"$file"
}

stop_if_idle() {  # IDLE RESTARTS: ends the job where they are too many
    (($1 < MOST_IDLE_RESTARTS)) && return
    say "stopped: $1 restarts in a row got no further than ${begin:-the beginning}; see above why, then submit again"
    exit "$FAILED"
}

start_job() {  # says where we are; sets `job_logs`
    job_logs=$JOB_LOGS/$SLURM_JOB_NAME-$SLURM_JOB_ID
    mkdir -p "$job_logs"
    say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST, $(date --iso-8601=seconds)"
    count_idle_restarts
    stop_if_idle $((idle - 1)) # those before this one
}

known_code() {  # CODE: one of those of docs/cluster.md; whatever else ended a process, starting again may help
    case $1 in
        0 | "$BAD_INPUT" | "$UNHEALTHY" | "$STOPPED") echo "$1" ;;
        *) echo "$FAILED" ;;
    esac
}

exit_codes() { # of the nodes that have ended, other than 0
    find "${RANK_LOGS:-/nonexistent}" -name exit-code -exec grep -hvx 0 {} + 2>/dev/null || true
}

# Waits for srun..., through the SIGTERM of a cancelled, preempted or timed-out job: SLURM sends it to the ranks too, which
# save, and the log should have their last lines. Sets `code`.
wait_for() {
    local pid failed_for=0
    trap 'say "SIGTERM: SLURM ends this job; the ranks save in the time that it leaves them"' TERM
    "$@" &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep "$POLL_SECONDS"
        [[ -z $(exit_codes) ]] || failed_for=$((failed_for + POLL_SECONDS))
        if ((failed_for > SECONDS_TO_END)); then
            say "a node failed, and another has not ended since: it must be dead"
            kill -KILL "$pid" # srun would wait until SLURM has noticed too, which takes SlurmdTimeout, often 5 minutes
            break
        fi
    done
    code=0
    wait "$pid" 2>/dev/null || code=$?
    trap - TERM
    code=$(known_code "$code")
    # What one node says of itself is the job's result, whatever srun did to the others meanwhile; the gravest last.
    local known
    for known in "$FAILED" "$STOPPED" "$UNHEALTHY" "$BAD_INPUT"; do
        ! exit_codes | grep -qx "$known" || code=$known
    done
}

run_ranks() {  # WORDS of python, such as -m megatron_dpop train CONFIG: on one torchrun a node; sets `code`
    MASTER_ADDR=$(first_node_address)
    MASTER_PORT=$(free_port)
    RANK_LOGS=$job_logs/restart-${SLURM_RESTART_COUNT:-0}
    export MASTER_ADDR MASTER_PORT RANK_LOGS
    on_nodes "$scripts/node.sh" "$@"
}

on_nodes() {  # COMMAND...: once on each node, in the environment of settings.sh; sets `code`
    step_of "$SLURM_JOB_NUM_NODES" "$@"
    wait_for "${step[@]}"
}

step_of() {  # NODES COMMAND...: fills `step` with an srun that enters the environment of settings.sh
    # The first node that fails ends the others: they could only wait for it. And torchrun places its ranks itself, which
    # a mask of one core for its one task would forbid.
    step=(srun --nodes "$1" --ntasks-per-node 1 --kill-on-bad-exit=1 --cpu-bind none)
    local inside=(bash "$scripts/enter.sh" "${@:2}")
    if [[ $JOB_CONTAINER && $JOB_CONTAINER_KIND == pyxis ]]; then
        step+=(--container-image "$JOB_CONTAINER" --container-mounts "$JOB_CONTAINER_MOUNTS" --container-workdir "$PWD")
    elif [[ $JOB_CONTAINER ]]; then
        step+=(apptainer exec --nv --bind "$JOB_CONTAINER_MOUNTS" --pwd "$PWD" "$JOB_CONTAINER")
    fi
    step+=("${inside[@]}")
}

check_in_job() {  # WORDS of megatron-dpop: where the login node could not, finds what is wrong, and the run's folder
    [[ -z $MEGATRON_DPOP_RUN_DIR ]] || return 0
    local checked
    code=0
    step_of 1 python3 -m megatron_dpop "$@" --dry-run --ranks $((SLURM_JOB_NUM_NODES * JOB_RANKS_PER_NODE))
    checked=$("${step[@]}") || code=$(known_code $?)
    ((code == 0)) || finish_job
    MEGATRON_DPOP_RUN_DIR=$(sed -n 's/^run\.dir: //p' <<<"$checked")
}

# Ends the job: done, or requeued where a restart may help. A job that SLURM no longer takes for running (cancelled, out
# of time, requeued by hand) is not ours to requeue.
finish_job() {
    local state what="exit code $code"
    ((code != STOPPED)) || what="stopped and saved"
    if ((code == 0)); then
        say "finished"
    elif ((code == BAD_INPUT)); then
        say "bad input, see above; not requeued"
    elif ((code == UNHEALTHY)); then
        say "unhealthy, see above; saved, not requeued"
    else
        state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --states all --format %T 2>/dev/null || true)
        if [[ $state == RUNNING ]]; then
            [[ $(saved) != "$begin" ]] || stop_if_idle "$idle"
            say "$what; requeued, will go on from $(where)"
            scontrol requeue "$SLURM_JOB_ID"
            sleep 60 # SLURM ends this script
        fi
        say "$what; SLURM has job $SLURM_JOB_ID as ${state:-gone}"
    fi
    exit "$code"
}
