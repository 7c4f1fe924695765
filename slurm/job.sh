# What the three jobs share: where caches lie, how a signal reaches the training, when the job is queued again.
# Sourced by them, not started.
# shellcheck shell=bash

# Caches on the scratch disk that all nodes see: a home folder is small, and a node's own disk is empty the next time.
export HF_HOME="${HF_HOME:-${SCRATCH:?set SCRATCH to the scratch folder of your cluster}/huggingface}"
# Compute nodes without internet: `python train_... --download_only` on the login node fetched all that is needed.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export PYTHONUNBUFFERED=1

# The run folder, which must lie on a file system that all nodes see, from the training's own flags.
find_output_dir() {
    local last=""
    for word in "$@"; do
        if [ "$last" = "--output_dir" ]; then OUTPUT_DIR=$word; fi
        last=$word
    done
    : "${OUTPUT_DIR:?name the run folder with --output_dir FOLDER}"
}

# The training answers a signal with one complete checkpoint and exit code 75; a launcher makes 1 of it, so status.json
# is asked. The shell gets the signal (--signal=B:USR1@300, five minutes before the end) and hands it down.
run_and_requeue() {
    "$@" &
    local training=$! code=0
    trap 'kill -USR1 "$training" 2>/dev/null' USR1 TERM
    # A trapped signal ends `wait` early: wait again until the training itself has ended.
    while kill -0 "$training" 2>/dev/null; do
        code=0
        wait "$training" || code=$?
    done
    if [ "$code" -ne 0 ] && grep -qs '"exit_code": 75' "$OUTPUT_DIR/status.json"; then
        # Where every start ends the same way something else is wrong.
        if [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        exit 75
    fi
    exit "$code"
}
