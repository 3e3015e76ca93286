#!/usr/bin/env bash
# The hostfile of machines that ssh reaches without a password: each is asked for its number of GPUs.
#
#   hostfiles/from_ssh.sh a100-01 a100-02 > hosts
#   hostfiles/from_ssh.sh a100-{01..32} > hosts
set -euo pipefail

if [[ $# -eq 0 || $1 == -* ]]; then
    echo "usage: from_ssh.sh HOST… > FILE" >&2
    exit 2
fi
answers=$(mktemp -d)
trap 'rm -rf "$answers"' EXIT
number=0
for host in "$@"; do # all at once, answered in the order that they were given
    number=$((number + 1))
    ssh -n -T -o BatchMode=yes -o ConnectTimeout=10 "$host" nvidia-smi --list-gpus \
        > "$answers/$number" 2> "$answers/$number.errors" &
done
wait
failed=
number=0
for host in "$@"; do
    number=$((number + 1))
    slots=$(grep -c '^GPU ' "$answers/$number" || true)
    if [[ $slots -eq 0 ]]; then
        echo "from_ssh.sh: $host shows no GPU: $(tail -n 1 "$answers/$number.errors")" >&2
        failed=yes
    else
        echo "$host slots=$slots"
    fi
done
[[ ! $failed ]]
