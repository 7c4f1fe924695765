"""The jobs of slurm/, with the commands of a Slurm that is not here replaced by small ones that note what was asked."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from survival import status

JOBS = ["one_gpu.sbatch", "one_node.sbatch", "many_nodes.sbatch"]


@pytest.mark.parametrize("name", [*JOBS, "job.sh"])
def test_the_shell_of_a_job_is_sound(name):
    script = ROOT / "slurm" / name
    subprocess.run(["bash", "-n", script], check=True)
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if (shellcheck := shutil.which("shellcheck", path=search)) is None:
        pytest.skip("shellcheck is not installed; requirements-dev.txt has it")
    checked = subprocess.run([shellcheck, "-x", script], capture_output=True, text=True, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", JOBS)
def test_a_job_asks_for_a_signal_in_time_and_to_be_queued_again(name):
    text = (ROOT / "slurm" / name).read_text()
    asked = re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", text, flags=re.MULTILINE)
    assert {"signal": "B:USR1@300", "requeue": "", "open-mode": "append", "time": "02:00:00"}.items() <= dict(
        asked
    ).items()
    if name == "one_gpu.sbatch":
        assert {"gpus": "1", "cpus-per-task": "8", "mem": "32G"}.items() <= dict(asked).items()


class Cluster:
    """A folder to submit from, with `python` and `torchrun` of these tests, and a Slurm of one node."""

    def __init__(self, folder: Path):
        self.folder, self.starts = folder, 0
        (folder / "bin").mkdir(parents=True)
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / "slurm").symlink_to(ROOT / "slurm")
        self.command(".venv/bin/python", f'exec "{sys.executable}" "$@"')
        self.command(".venv/bin/torchrun", f'exec "{sys.executable}" -m torch.distributed.run "$@"')
        # sbatch keeps a copy of the job and starts that, here at once and in the foreground.
        copied = f'cp "$1" "{folder}/job"; shift; SLURM_SUBMIT_DIR=$PWD exec bash "{folder}/job" "$@"'
        self.command("bin/sbatch", copied)
        # srun starts its command on every node, here on one, and hands signals down.
        self.command("bin/srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
        self.command("bin/scontrol", f'echo "$@" >> "{folder}/asked"; [ "$1" = show ] && echo localhost || true')

    def command(self, name: str, line: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)

    def start(self, job: str, *words, gpus: int = 1) -> subprocess.Popen:
        """Submit a job by the README's command, whose turn comes at once."""
        given = {"SCRATCH": self.folder / "scratch", "SLURM_JOB_ID": 7}
        given |= {"SLURM_CPUS_PER_TASK": 2 * gpus, "SLURM_GPUS_ON_NODE": gpus, "SLURM_NNODES": 1}
        given |= {"SLURM_JOB_NODELIST": "node1", "SLURM_RESTART_COUNT": self.starts, "OMP_NUM_THREADS": 1}
        given |= {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PYTHONPATH": ROOT}
        environment = os.environ | {name: str(value) for name, value in given.items()}
        self.log = self.folder / f"log{self.starts}"
        self.starts += 1
        command = [f"{self.folder}/bin/sbatch", f"slurm/{job}", *map(str, words)]
        with self.log.open("w") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def wait_for(self, words: str, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while words not in self.log.read_text():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def left(self, group: int) -> list[str]:
        return subprocess.run(["pgrep", "-s", str(group), "-a"], capture_output=True, text=True).stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("job", "gpus"), [("one_gpu.sbatch", 1), ("one_node.sbatch", 2), ("many_nodes.sbatch", 2)])
def test_a_job_that_is_told_of_its_end_is_queued_again_with_a_checkpoint(job, gpus, photos, tiny_vit, tmp_path):
    cluster, run = Cluster(tmp_path / "cluster"), tmp_path / "run"
    words = [ROOT / "train_finetune.py", "--dataset_name", photos, "--model_name_or_path", tiny_vit, "--use_cpu"]
    words += ["--per_device_train_batch_size", 2, "--num_train_epochs", 60, "--output_dir", run]
    process = cluster.start(job, *words, gpus=gpus)
    cluster.wait_for("epoch 2/60")
    # As --signal=B:USR1@300 does: to the shell alone.
    os.kill(process.pid, signal.SIGUSR1)
    assert process.wait(60) == 75, cluster.log.read_text()
    assert status(run) == {"state": "preempted", "exit_code": 75}
    assert "requeue 7" in (cluster.folder / "asked").read_text().splitlines()
    assert cluster.left(process.pid) == []
    if gpus > 1:
        return
    process = cluster.start(job, *words)
    cluster.wait_for("resuming from")
    cluster.wait_for("epoch 4/60")
    # The end of all time: Slurm signals every process, a little later it kills.
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 75, cluster.log.read_text()
    assert len((cluster.folder / "asked").read_text().split("requeue 7")) == 3
    assert cluster.left(process.pid) == []


@pytest.mark.slow
def test_a_job_that_fails_is_not_queued_again_and_one_that_is_done_ends_with_0(photos, tiny_vit, tmp_path):
    cluster, run = Cluster(tmp_path / "cluster"), tmp_path / "run"
    words = [ROOT / "train_finetune.py", "--dataset_name", photos, "--model_name_or_path", tiny_vit, "--use_cpu"]
    words += ["--num_train_epochs", 1]
    assert cluster.start("one_gpu.sbatch", *words).wait(30) != 0
    assert "set the run folder with --output_dir" in cluster.log.read_text()
    words += ["--output_dir", run]
    assert cluster.start("one_gpu.sbatch", *words, "--train_layers", "some").wait(60) == 2
    assert cluster.start("one_gpu.sbatch", *words).wait(60) == 0
    assert not (cluster.folder / "asked").exists()
