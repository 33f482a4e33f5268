#!/bin/sh
# A recipe's stages over several nodes by torchrun alone. Start it on every node, each with its own number:
#
#     sh torchrun.sh my.yaml runs/my 0 4 node-1        on node-1, the first of four
#     sh torchrun.sh my.yaml runs/my 1 4 node-1        on the next
#
# RUN is a folder that all of them see. Complete stages are passed over and interrupted ones go on, so that after a
# fault the same commands come back. `rlhf launch my.yaml --on torchrun --hosts FILE` does all of this by itself.
set -eu
recipe=$1 run=$2 node=$3 nodes=$4 head=$5

: "${PROCESSES:=$(nvidia-smi -L | grep -c '^GPU ')}" # of each node: one for each GPU
: "${INTERFACE:=eth0}"                               # by which nodes reach each other
: "${ADDRESS:=$(hostname)}"                          # by which they reach this one
: "${PORT:=29400}"                                   # of the rendezvous, on the first node
: "${STAGES:=sft reward ppo evaluate}"
export NCCL_SOCKET_IFNAME="$INTERFACE" GLOO_SOCKET_IFNAME="$INTERFACE"
# A store that agents share with their workers outlives neither of them: who comes back finds it gone.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PYTHONSAFEPATH=1

if [ "$node" = 0 ]; then
    is_host=true
    mkdir -p "$run"
    rlhf run "$recipe" --dry-run >"$run/.recipe" # the resolved recipe, by which all nodes go
    mv "$run/.recipe" "$run/recipe.yaml"
else
    is_host=false
    until [ -f "$run/recipe.yaml" ]; do sleep 1; done
fi

for stage in $STAGES; do
    code=0
    python -P -m launch.clusters.due --run "$run" "$stage" --wait 600 || code=$?
    [ "$code" = 10 ] && continue # its result stands
    [ "$code" = 0 ] || exit "$code"
    torchrun --nnodes "$nodes" --nproc-per-node "$PROCESSES" --max-restarts 3 --shutdown-timeout 60 \
        --rdzv-backend c10d --rdzv-endpoint "$head:$PORT" --rdzv-id "$stage" \
        --rdzv-conf "is_host=$is_host,join_timeout=600,read_timeout=60" --local-addr "$ADDRESS" \
        -m "stages.$stage" --recipe "$run/recipe.yaml" --run-dir "$run"
done
