#!/usr/bin/env bash
# A run on the nodes of a Slurm allocation: starts Ray on them, runs gems-ray, ends Ray again.
#
#   source ~/gems_ray/bin/activate
#   sbatch deploy/slurm.sh grid tune_configs/grid.yaml
#
# What follows the script's name is a command of gems-ray: grid, search or resume. Submit it in a folder that every node
# sees, because the run folder is written there. docs/cluster.md explains it. Change these lines, or give them to sbatch:
#SBATCH --job-name=gems-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --output=%x-%j.log
# For GPUs: sbatch --gpus-per-node=1 ...
set -euo pipefail

usage="sbatch deploy/slurm.sh grid FILE [options of gems-ray grid]"
: "${SLURM_JOB_ID:?expected a job of Slurm. Submit this script: ${usage}}"
if (($# < 2)); then
    echo "error: expected a command of gems-ray with its file, found '$*'. Submit: ${usage}" >&2
    exit 2
fi

cpus=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${cpus} # since Slurm 22.05 srun does not take it from sbatch
export RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(ray get-auth-token --generate 2>/dev/null) # srun hands it on, also to nodes with other home folders
export RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST}")
address=$(python3 -c 'import ray.util; print(ray.util.get_node_ip_address())') # this script runs on the first node
port=$((20000 + SLURM_JOB_ID % 5000)) # two jobs may share a node
dashboard_port=$((port + 5000))

steps=()
question=""
run=""
signalled=""
# shellcheck disable=SC2329 # the trap calls it
end_ray() { # not `ray stop`, which would end the Ray of this user's other jobs as well
    for process in "${question}" "${steps[@]}"; do
        [[ -z ${process} ]] || kill "${process}" 2>/dev/null || true
    done
    wait
}
trap end_ray EXIT
# Slurm sends it three minutes before the time limit: the run saves its cells and ends.
trap 'signalled=yes; if [[ ${run} ]]; then kill -TERM "${run}" 2>/dev/null || true; else exit 143; fi' TERM

wait_for_nodes() { # in the background, because bash hears no signal while it waits for a command in the foreground
    until python3 - "${address}:${port}" "$1" <<'PYTHON' & question=$! && wait "${question}"; do
import sys

import ray

try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
except ConnectionError:
    sys.exit(1)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))
PYTHON
        for step in "${steps[@]}"; do # an allocation costs: better an error than to wait until the time limit
            if ! kill -0 "${step}" 2>/dev/null || ((SECONDS > 600)); then
                echo "error: Ray does not start on ${SLURM_JOB_NODELIST}; the lines above tell why." >&2
                exit 1
            fi
        done
        sleep 1
    done
    question=""
}

srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" ray start --head --block --node-ip-address="${address}" \
    --port="${port}" --num-cpus="${cpus}" --dashboard-host=127.0.0.1 --dashboard-port="${dashboard_port}" &
steps+=($!)
until (exec 3<>"/dev/tcp/${address}/${port}") 2>/dev/null || ! kill -0 "${steps[0]}" 2>/dev/null; do
    sleep 1
done
wait_for_nodes 1 # a node that comes too early gives up
others=$((${#nodes[@]} - 1))
if ((others)); then
    srun --nodes="${others}" --ntasks="${others}" --exclude="${nodes[0]}" ray start --block \
        --address="${address}:${port}" --num-cpus="${cpus}" &
    steps+=($!)
    wait_for_nodes "${#nodes[@]}" # a run counts them when it starts
fi

gems-ray "$@" --address "${address}:${port}" &
run=$!
while :; do # a signal ends `wait`, but not the run
    signalled=""
    wait "${run}" && code=0 || code=$?
    [[ ${signalled} ]] || break
done
exit "${code}"
