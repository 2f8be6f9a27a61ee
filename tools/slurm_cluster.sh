#!/usr/bin/env bash
# A private SLURM of several nodes on this machine, for tests and for trying the scripts of examples/slurm.
#
#   tools/slurm_cluster.sh start FOLDER [NODES]     starts NODES nodes (2), named n1, n2, ...; state and logs in FOLDER
#   eval "$(tools/slurm_cluster.sh env FOLDER)"     lets sbatch, srun and scontrol of this shell talk to it
#   tools/slurm_cluster.sh kill-node FOLDER n2      as a power cut: SIGKILL to the node's daemon and all that runs on it
#   tools/slurm_cluster.sh start-node FOLDER n2     brings the node back
#   tools/slurm_cluster.sh stop FOLDER              ends everything that was started; FOLDER stays
#
# Needs Debian's packages slurm-wlm and munge, and no rights: daemons run as the user who starts them. Its key, sockets
# and ports are its own, and it reads no file of /etc/slurm: a cluster that exists is not touched. One client of it is
# told from another cluster's by SLURM_CONF alone.
set -euo pipefail

readonly CPUS_PER_NODE=4  # claimed, whatever the machine has: ranks of tests are small
readonly SECONDS_TO_START=30

fail() {
    echo "slurm_cluster.sh: error: $*" >&2
    exit 2
}

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit "$1"
}

need_commands() {
    local name
    for name in munged slurmctld slurmd scontrol sinfo; do
        type -P "$name" >/dev/null || fail "no $name on this machine; apt-get install slurm-wlm munge"
    done
}

alive() {  # PID; a zombie, which an init process that does not reap leaves for good, is dead
    grep -q '^State:\s*[^ZX\s]' "/proc/$1/status" 2>/dev/null
}

running() {  # PIDFILE
    local pid
    [[ -s $1 ]] && read -r pid <"$1" && alive "$pid"
}

wait_until() {  # WHAT COMMAND...: until the command succeeds
    local what=$1 tenths
    shift
    for ((tenths = 0; tenths < SECONDS_TO_START * 10; tenths++)); do
        "$@" && return
        sleep 0.1
    done
    fail "$what did not happen within $SECONDS_TO_START s; see the logs in $folder/log"
}

free_port() {  # FIRST: the first port from FIRST on that nobody listens on; below the range of outgoing connections
    local port=$1
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do ((port++)); done
    echo "$port"
}

node_names() { seq -f 'n%g' 1 "$1"; }

write_config() {  # NODES
    local host port node number=0
    host=$(hostname -s)
    port=$(free_port $((20000 + (RANDOM % 500) * 20)))
    cat <<END
ClusterName=private
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# A requeued job waits until its credential has expired: 5 s is the least.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
SlurmdTimeout=300
InactiveLimit=0
KillWait=30
MinJobAge=3600
END
    for node in $(node_names "$1"); do
        number=$((number + 1))
        port=$(free_port $((port + 1)))
        echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.$((number + 10)) Port=$port CPUs=$CPUS_PER_NODE"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
}

start_munge() {
    local key=$folder/munge/key
    (umask 077 && head -c 128 /dev/urandom >"$key")
    munged --force --key-file "$key" --socket "$folder/munge/socket" --pid-file "$folder/run/munged.pid" \
        --log-file "$folder/log/munged.log" --seed-file "$folder/munge/seed" 2>>"$folder/log/munged.err" ||
        fail "munged did not start: $(tail -n 1 "$folder/log/munged.err")"
}

start_node() {  # NAME
    slurmd -N "$1" -f "$folder/slurm.conf" 2>>"$folder/log/$1.err" ||
        fail "slurmd of $1 did not start: $(tail -n 1 "$folder/log/$1.err")"
}

all_idle() {  # NODES
    [[ $(sinfo --noheader --states idle --format %D 2>/dev/null) == "$1" ]]
}

start() {  # NODES
    [[ $1 =~ ^[1-9][0-9]?$ ]] || fail "NODES is '$1'; give a number from 1 to 99"
    running "$folder/run/slurmctld.pid" && fail "$folder already holds a running cluster; stop it, or choose another folder"
    [[ $folder =~ ^[a-zA-Z0-9_./+@-]+$ ]] ||
        fail "$folder has signs that slurm.conf cannot hold; choose a folder of letters, digits and _./+@-"
    ((${#folder} <= 80)) || fail "$folder is too long for the sockets in it; choose a folder of at most 80 characters"
    mkdir -p "$folder"/{munge,run,log,state}
    mkdir -p "$folder"/spool
    chmod 700 "$folder/munge"
    rm -rf "${folder:?}"/state/* "${folder:?}"/run/* "${folder:?}"/munge/*
    local node
    for node in $(node_names "$1"); do mkdir -p "$folder/spool/$node"; done
    write_config "$1" >"$folder/slurm.conf"
    export SLURM_CONF=$folder/slurm.conf
    trap 'stop' EXIT  # nothing half-started is left behind
    start_munge
    slurmctld -c -f "$folder/slurm.conf" 2>>"$folder/log/slurmctld.err" ||
        fail "slurmctld did not start: $(tail -n 1 "$folder/log/slurmctld.err")"
    for node in $(node_names "$1"); do start_node "$node"; done
    wait_until "the start of $1 nodes" all_idle "$1"
    trap - EXIT
}

processes_of() {  # NAME: process ids of a node: its daemon, its step daemons, and their tasks
    local environ pid parent
    cat "$folder/run/$1.pid" 2>/dev/null || true
    for environ in /proc/[0-9]*/environ; do
        grep -qzxF "SLURM_CONF=$folder/slurm.conf" "$environ" 2>/dev/null || continue
        grep -qzxF "SLURMD_NODENAME=$1" "$environ" 2>/dev/null || continue
        pid=${environ//[^0-9]/}
        echo "$pid"
        parent=$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status" 2>/dev/null)
        [[ $(cat "/proc/${parent:-0}/comm" 2>/dev/null) == slurmstepd ]] && echo "$parent"
    done
    true
}

kill_node() {  # NAME
    local pids
    mapfile -t pids < <(processes_of "$1" | sort -u)
    kill -KILL "${pids[@]}" 2>/dev/null || true
    rm -f "$folder/run/$1.pid"
}

stop() {
    local pidfile pid node
    for pidfile in "$folder"/run/slurmctld.pid "$folder"/run/munged.pid; do
        if running "$pidfile"; then
            read -r pid <"$pidfile"
            kill "$pid"
            while alive "$pid"; do sleep 0.1; done
        fi
    done
    for node in "$folder"/spool/*; do kill_node "${node##*/}"; done
}

[[ ${1:-} == -h || ${1:-} == --help ]] && usage 0
(($# >= 2)) || usage 2
command=$1
folder=$(realpath -m "$2")
case $command in
    start)
        need_commands
        start "${3:-2}"
        ;;
    env) printf 'export SLURM_CONF=%q\n' "$folder/slurm.conf" ;;
    kill-node) kill_node "${3:?NAME of the node}" ;;
    start-node)
        export SLURM_CONF=$folder/slurm.conf
        start_node "${3:?NAME of the node}"
        ;;
    stop) stop ;;
    *) usage 2 ;;
esac
