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
port=$((20000 + SLURM_JOB_ID % 10000))                                         # two jobs may share a node

steps=()
run=""
signalled=""
# shellcheck disable=SC2329 # the trap calls it
end_ray() { # not `ray stop`, which would end the Ray of this user's other jobs as well
    ((${#steps[@]} == 0)) || kill "${steps[@]}" 2>/dev/null || true
    wait
}
trap end_ray EXIT
# Slurm sends it three minutes before the time limit: the run saves its cells and ends.
trap 'signalled=yes; if [[ ${run} ]]; then kill -TERM "${run}" 2>/dev/null || true; else exit 143; fi' TERM

check_steps() { # an allocation costs: better an error now than nodes that wait until the time limit
    for step in "${steps[@]}"; do
        if ! kill -0 "${step}" 2>/dev/null || ((SECONDS > 600)); then
            echo "error: Ray does not start on ${SLURM_JOB_NODELIST}; the lines above tell why." >&2
            exit 1
        fi
    done
    sleep 1
}

srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" ray start --head --block --node-ip-address="${address}" \
    --port="${port}" --num-cpus="${cpus}" --dashboard-host=127.0.0.1 &
steps+=($!)
until (exec 3<>"/dev/tcp/${address}/${port}") 2>/dev/null; do
    check_steps
done
others=$((${#nodes[@]} - 1))
if ((others)); then
    srun --nodes="${others}" --ntasks="${others}" --exclude="${nodes[0]}" ray start --block \
        --address="${address}:${port}" --num-cpus="${cpus}" &
    steps+=($!)
fi
# A run counts the nodes when it starts, so that all of them must be there.
until python3 - "${address}:${port}" "${#nodes[@]}" <<'PYTHON'; do
import sys

import ray

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))
PYTHON
    check_steps
done

gems-ray "$@" --address "${address}:${port}" &
run=$!
while :; do # a signal ends `wait`, but not the run
    signalled=""
    wait "${run}" && code=0 || code=$?
    [[ ${signalled} ]] || break
done
exit "${code}"
