#!/usr/bin/env bash
# Trains a chain of stages, each from the last one's result: a recipe of examples/recipes, or configs of your own.
#
#   examples/slurm/pipeline.sh RECIPE                        checks every stage, then submits a job for each
#   examples/slurm/pipeline.sh CONFIG CONFIG ...             the same; model.path of each is CHECKPOINTS of the one before
#   examples/slurm/pipeline.sh --from 3 RECIPE               begins at the third stage
#   examples/slurm/pipeline.sh --test-only RECIPE            only checks
#   examples/slurm/pipeline.sh --tiny FOLDER RECIPE          a random model and made-up data in FOLDER, to try it out
#
# Run it again after whatever happened: stages that are finished are passed over, one that is half done goes on where it
# was. A stage whose job failed for good cancels those that wait for it. Two jobs of one stage never run at once.

MEGATRON_DPOP_SCRIPTS=${MEGATRON_DPOP_SCRIPTS:-$(dirname "$(realpath "$0")")}
[[ -f $MEGATRON_DPOP_SCRIPTS/common.sh ]] || { echo "run this script itself: it gives itself to sbatch" >&2 && exit 2; }
# shellcheck source=examples/slurm/common.sh
source "$MEGATRON_DPOP_SCRIPTS/common.sh"

state_of() {  # RUN.DIR
    sed -n 's/^ *"state": "\(.*\)",\{0,1\}$/\1/p' "$1/heartbeat.json" 2>/dev/null || true
}

read_options "$@"
((${#words[@]} > 0)) || usage "$BAD_INPUT"
listed=$(in_environment python3 "$scripts/../recipes/stages.py" "${tiny[@]}" "${words[@]}") || exit "$?"
mapfile -t stages <<<"$listed"
commands=()
for stage in "${stages[@]}"; do
    IFS=$'\t' read -r config run_dir start <<<"$stage"
    # A model that an earlier stage has yet to make is checked as the chain's first model, which has its shape.
    [[ ! -e $run_dir/config.yaml ]] || start=''
    commands+=(-- train "$config" ${start:+"--model.path=$(yaml_string "$start")"})
done
check "${commands[@]:1}"

previous=$after
for number in "${!stages[@]}"; do
    IFS=$'\t' read -r config run_dir start <<<"${stages[number]}"
    if [[ $(state_of "$run_dir") == finished ]]; then
        say "stage $((number + 1)) of ${#stages[@]}: $run_dir is finished"
        continue
    fi
    if ((number + 1 < from)); then
        say "stage $((number + 1)) of ${#stages[@]}: left out"
        continue
    fi
    say "stage $((number + 1)) of ${#stages[@]}: $config"
    after='' # the dependency is more than that
    stage_name=${run_dir//\//-}
    job_options "${stage_name#-}" "$JOB_NODES" "$JOB_GPUS_PER_NODE" "$JOB_PARTITION" "$JOB_EXTRA"
    options+=(--dependency "singleton${previous:+,afterok:$previous}")
    MEGATRON_DPOP_RUN_DIR=$run_dir
    submit "$scripts/train.sbatch" "$config"
    previous=$job
done
