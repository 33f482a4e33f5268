#!/bin/sh
# A recipe's stages over several nodes by deepspeed alone. Start it on every node, each with its own number:
#
#     sh deepspeed.sh my.yaml runs/my 0 hosts node-1        on node-1, the first line of the hostfile `hosts`
#     sh deepspeed.sh my.yaml runs/my 1 hosts node-1        on the next
#
# RUN is a folder that all of them see; `hosts` has a line such as `node-1 slots=8` for each. Complete stages are passed
# over and interrupted ones go on, so that after a fault the same commands come back. The strategy is the recipe's, not
# the starter's: deepspeed starts ddp and fsdp as well. `rlhf launch my.yaml --on deepspeed --hosts hosts` does all of this.
set -eu
recipe=$1 run=$2 node=$3 hosts=$4 head=$5

: "${INTERFACE:=eth0}" # by which nodes reach each other
: "${PORT:=29500}"     # on the first node
: "${STAGES:=sft reward ppo evaluate}"
export NCCL_SOCKET_IFNAME="$INTERFACE" GLOO_SOCKET_IFNAME="$INTERFACE" PYTHONSAFEPATH=1

if [ "$node" = 0 ]; then
    mkdir -p "$run"
    rlhf run "$recipe" --dry-run >"$run/.recipe" # the resolved recipe, by which all nodes go
    mv "$run/.recipe" "$run/recipe.yaml"
else
    until [ -f "$run/recipe.yaml" ]; do sleep 1; done
fi

for stage in $STAGES; do
    code=0
    python -P -m launch.clusters.due --run "$run" "$stage" --wait 600 || code=$?
    [ "$code" = 10 ] && continue # its result stands
    [ "$code" = 0 ] || exit "$code"
    deepspeed --hostfile "$hosts" --no_ssh --node_rank "$node" --master_addr "$head" --master_port "$PORT" \
        --no_local_rank --module "stages.$stage" --recipe "$run/recipe.yaml" --run-dir "$run"
done
