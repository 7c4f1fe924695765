# Shared by the three jobs: cache folders, signal handling and requeueing. Sourced by them, not run directly.
# shellcheck shell=bash

# Keep caches on the shared scratch disk: home folders are small, and local disks are cleared between jobs.
export HF_HOME="${HF_HOME:-${SCRATCH:?set SCRATCH to the scratch folder of your cluster}/huggingface}"
# For compute nodes without internet access: first run `python train_... --download_only` on the login node.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export PYTHONUNBUFFERED=1

# Read the run folder from the training flags; it must be on a file system shared by all nodes.
find_output_dir() {
    local last=""
    for word in "$@"; do
        if [ "$last" = "--output_dir" ]; then OUTPUT_DIR=$word; fi
        last=$word
    done
    : "${OUTPUT_DIR:?set the run folder with --output_dir FOLDER}"
}

# On a signal, the training saves a checkpoint and exits with code 75. A launcher turns 75 into 1, so status.json is read
# instead. The shell receives the signal (--signal=B:USR1@300, five minutes before the time limit) and forwards it.
run_and_requeue() {
    "$@" &
    local training=$! code=0
    trap 'kill -USR1 "$training" 2>/dev/null' USR1 TERM
    # A trapped signal interrupts `wait`: wait again until the training has ended.
    while kill -0 "$training" 2>/dev/null; do
        code=0
        wait "$training" || code=$?
    done
    if [ "$code" -ne 0 ] && grep -qs '"exit_code": 75' "$OUTPUT_DIR/status.json"; then
        # Too many restarts mean that something else is wrong.
        if [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        exit 75
    fi
    exit "$code"
}
