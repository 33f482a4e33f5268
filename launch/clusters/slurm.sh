
# From here on the same for every stage. A try that ends badly is requeued, unless somebody has cancelled the job, the
# input is bad (exit code 2), or RETRIES tries after the first have come to no new checkpoint.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
try=${SLURM_RESTART_COUNT:-0}
starts=3600 # seconds until a server has loaded its model
asked= trainer= servers=() stage=batch log=/dev/stdout

# What each process of a stage does: it takes its name from Slurm's, hands SIGUSR1 on as one SIGTERM, and writes down
# how it ended, which srun does not hand on reliably. The others get five seconds for their last words.
process='
marks=$1 grace=$2; shift 2
export RLHF_ERRORS=$marks/errors
if [ $SLURM_STEP_NUM_TASKS -gt 1 ]; then # libraries take a single process that has a rank for one of several
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
    export LOCAL_WORLD_SIZE=$((SLURM_STEP_NUM_TASKS / SLURM_STEP_NUM_NODES))
fi
asked= timer=
stop() { [ "$asked" ] || { asked=1; kill -TERM $child; { sleep $grace; kill -KILL $child; } & timer=$!; }; }
trap "" USR1
trap "asked=1" TERM
"$@" & child=$!
trap stop USR1
while wait $child; code=$?; kill -0 $child 2>/dev/null; do :; done
wait $child 2>/dev/null; last=$?
[ $last = 127 ] || code=$last
[ "$timer" ] && kill $timer
[ $code = 0 ] || { echo $code >"$marks/$SLURM_PROCID"; sleep 5; }
exit $code
'

say() { echo "$(date +%H:%M:%S) $stage: $*" >>"$log"; }

ask() { # somebody, or the end of the time, wants this to stop behind a checkpoint
    asked=1
    say "asked to stop behind a checkpoint"
    [ -z "$trainer" ] || kill -USR1 "$trainer" 2>/dev/null
}
trap ask USR1 TERM

ended() { # PID: wait for it, whatever signals come; its exit code
    local code last
    while wait "$1"; code=$?; kill -0 "$1" 2>/dev/null; do :; done
    wait "$1" 2>/dev/null
    last=$?
    [ $last = 127 ] || code=$last
    return $code
}

newest() { # the stage's newest checkpoint
    local found
    found=$(ls "$run/$stage/checkpoints" 2>/dev/null | grep -E '^step-[0-9]+$' | tail -n 1)
    echo "${found:-none}"
}

spent() { # tries of this job, counted from the last, that began with what is now the newest checkpoint, or before it
    awk -v job="$job" -v newest="$(newest)" -v try=-1 \
        '$2 == job && $3 != try { try = $3; n = $4 == newest ? n + 1 : 0 } END { print n + 0 }' "$tries"
}

begin() { # STAGE NODES: whether it has to run
    local code
    stage=$1
    log=$run/launch/logs/$stage-$job.log tries=$run/launch/$stage.tries marks=$run/launch/.$stage-$job-$try
    touch "$tries" || exit 1
    ! [ -e "$run/launch/stop" ] || finish 75
    [ "$(spent)" -le "$retries" ] || give_up 1 "Slurm has requeued it"
    mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST_HET_GROUP_0:-$SLURM_JOB_NODELIST}" | head -n "$2")
    "${inside[@]}" "$python" -P -m launch.clusters.due --run "$run" --wait 60 "$stage" >>"$log" 2>&1 & ended $!
    code=$?
    [ $code != 10 ] || { say "complete, nothing to do"; return 1; }
    [ $code = 0 ] || finish $code
    echo "began $job $try $(newest) $(date +%s) $(IFS=,; echo "${nodes[*]}")" >>"$tries"
    say "job $job, try $((try + 1)), on ${nodes[*]}, from checkpoint $(newest)"
    rm -rf "$run/launch/.$stage-$job-"*
    mkdir -p "$marks"
    export MASTER_PORT=$((ports + (SLURM_JOB_ID * 7 + try) % 1000))
    MASTER_ADDR=$(address "${nodes[0]}")
    export MASTER_ADDR
    extra=()
}

address() { # NODE: where it is reached
    scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' | head -n 1
}

gpus() { # NUMBERS: those of the job's GPUs, as CUDA_VISIBLE_DEVICES of this node has them
    local given=() number found=()
    IFS=, read -ra given <<<"$CUDA_VISIBLE_DEVICES"
    for number in "$@"; do found+=("${given[number]:-$number}"); done
    (IFS=,; echo "${found[*]}")
}

apart() { # NODES: addresses of nodes that are the servers' own
    local node
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST_HET_GROUP_1" | head -n "$1"); do address "$node"; done
}

serve() { # ROLE PORT HEALTH FIELD NODE... -- SRUN OPTIONS -- COMMAND: start servers, wait until all answer
    local role=$1 port=$2 health=$3 field=$4 there=() options=() list='' host late=$((SECONDS + starts))
    shift 4
    while [ "$1" != -- ]; do there+=("$1"); shift; done
    shift
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    [[ " ${options[*]} " != *" --overlap "* ]] || options+=(--nodelist="$(IFS=,; echo "${nodes[*]}")") # beside the trainers
    srun "${options[@]}" --ntasks-per-node=1 --label "$@" >>"$run/launch/logs/$stage-$role-$job.log" 2>&1 &
    servers+=($!)
    for host in "${there[@]}"; do
        list+=${list:+,}http://$host:$port
        until answers "$host" "$port" "$health"; do
            [ -z "$asked" ] || finish 75
            kill -0 "${servers[-1]}" 2>/dev/null || finish 1 "the $role has ended; $stage-$role-$job.log says why"
            [ $SECONDS -lt $late ] || finish 1 "the $role does not answer after $starts s"
            sleep 1
        done
    done
    say "$role: $list"
    [ -z "$field" ] || extra+=("$field=[$list]")
}

answers() { # HOST PORT PATH: whether 200 comes, by no proxy; without a path, whether it takes connections
    timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" || exit; [ "$2" ] || exit 0
        printf "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" "$2" "$0" >&3 &&
        read -r _ code _ <&3 && [ "$code" = 200 ]' "$@" 2>/dev/null
}

train() { # SRUN OPTIONS -- COMMAND: run the stage; returns where it is complete
    local options=() code found
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    [ -z "$asked" ] || finish 75
    srun "${options[@]}" --nodelist="$(IFS=,; echo "${nodes[*]}")" --distribution=block --label --kill-on-bad-exit=1 \
        bash -c "$process" "$stage" "$marks" "$grace" "$@" "${extra[@]}" >>"$log" 2>&1 &
    trainer=$!
    ended $trainer
    code=$? trainer=
    [ ! -f "$marks/errors" ] || awk '!seen[$0]++' "$marks/errors" >>"$log" # what several have to say, once
    for found in 75 70 74 2; do # the last that some process ended with counts
        grep -qsx "$found" "$marks"/* && code=$found
    done
    [ $code != 0 ] && for found in "${servers[@]}"; do # what a trainer says whose server has gone is not about its input
        kill -0 "$found" 2>/dev/null || code=1
    done
    [ -z "${servers[*]}" ] || kill "${servers[@]}" 2>/dev/null
    servers=()
    [ $code = 0 ] || finish $code
    echo "ended $job $try $(newest) $(date +%s) 0" >>"$tries"
    rm -rf "$marks"
}

finish() { # CODE [WHY]: the end of this try, and of the job unless it is requeued
    [ -z "$2" ] || say "$2"
    echo "ended $job $try $(newest) $(date +%s) $1" >>"$tries"
    rm -rf "$marks"
    if [ "$1" = 2 ]; then
        say "exit code 2: the lines above say what to mend; rlhf resume then goes on"
    elif [ -e "$run/launch/stop" ]; then
        say "exit code $1: stopped by rlhf cancel, at checkpoint $(newest)"
    elif [ "$(spent)" -gt "$retries" ]; then
        give_up "$1" "exit code $1"
    elif ! scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
        say "exit code $1: Slurm ends this job" # cancelled: a requeue would bring it back to life
    else
        say "exit code $1: requeued, to go on from checkpoint $(newest)"
        trap '' USR1
        trap - TERM # by which the requeue ends this script
        scontrol requeue "$SLURM_JOB_ID" >>"$log" 2>&1 && sleep 600
    fi
    exit "$1"
}

give_up() { # CODE WHY
    say "$2: $((retries + 1)) tries in a row came to no checkpoint behind $(newest); given up"
    exit "$1"
}
