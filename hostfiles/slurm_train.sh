#!/usr/bin/env bash
# A training under Slurm that outlives its time limit, preemption and failing nodes:
#
#   sbatch hostfiles/slurm_train.sh --recipe sam_vit_h --deepspeed_config ds_configs/zero2_a100x256.json \
#       --data /data/sa1b --output /runs/sam_vit_h
#
# srun starts every rank itself, in place of the deepspeed launcher: no hostfile and no ssh. Five minutes before the time
# limit, and when the job is preempted, every rank gets SIGUSR1 or SIGTERM: together they end the step, save, and exit
# with 0. The job is then put in the queue again, and goes on from there. Not yet run on a cluster.
#
#SBATCH --job-name=sam_ds
#SBATCH --nodes=32
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

stopping=
stop() {
    stopping=yes
    scancel --signal=USR1 "$SLURM_JOB_ID" # to the ranks; this shell is not among them
}
trap stop USR1 TERM

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

# shellcheck disable=SC2016  # each rank looks its own numbers up
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec "${PYTHON:-python3}" -m sam_ds train "$@"' -- "$@" &
status=0
wait $! || status=$?
while [[ $(jobs -r) ]]; do # a signal ended the first wait
    status=0
    wait %1 || status=$?
done

# 2: a mistake of ours, which another start would repeat. All else is worth another start, except to have come to the
# end; sam-ds stops by itself when starts lead nowhere.
if [[ $stopping || ($status -ne 0 && $status -ne 2) ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
