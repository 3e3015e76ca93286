#!/usr/bin/env bash
# The hostfile of a Slurm allocation, for the deepspeed launcher. Inside a job (salloc or sbatch):
#
#   hostfiles/from_slurm.sh > hosts
#
# slurm_train.sh needs no hostfile: there srun starts the ranks.
set -euo pipefail

if [[ -z ${SLURM_JOB_NODELIST:-} ]]; then
    echo "from_slurm.sh: SLURM_JOB_NODELIST is not set: run it inside a job, after salloc or in what sbatch runs" >&2
    exit 2
fi
slots=${SLURM_GPUS_ON_NODE:-}
if ! [[ $slots =~ ^[1-9][0-9]*$ ]]; then
    echo "from_slurm.sh: SLURM_GPUS_ON_NODE is '$slots', not a number of GPUs: ask for them, as --gpus-per-node=8" >&2
    exit 2
fi
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
while read -r host; do
    echo "$host slots=$slots"
done <<< "$hosts"
