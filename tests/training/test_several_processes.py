"""Several processes: one set of files, the scores of one process, one end for all."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from finished_runs import EVERY_RUN, clean_environment, files_of, predictions_of
from launching import LAUNCH, TOGETHER
from survival import digest, status

from agritransfer.errors import DivergedError

pytestmark = pytest.mark.slow


def command(count: int, run: Path, *flags) -> list[str]:
    several = ["--multi_gpu", "--num_processes", count] if count > 1 else []
    return [str(word) for word in [*LAUNCH, *several, ROOT / "train_finetune.py", *flags, "--output_dir", run]]


@pytest.fixture
def flags(photos, tiny_vit) -> list:
    return ["--dataset_name", photos, "--model_name_or_path", tiny_vit, "--use_cpu", "--learning_rate", "0.01"]


def test_two_and_four_processes_give_one_set_of_files_and_the_metrics_of_one(flags, photos, field_photos, tmp_path):
    # A fitted head would leave a loss near zero; and without augmentation, since each process draws crops of its own.
    flags += ["--no_head_first"]
    flags += ["--shift_dataset_name", field_photos, "--augmentation", "none", "--num_train_epochs", "3"]
    results = {}
    for count in (1, 2, 4):
        run = tmp_path / str(count)
        batch = ["--per_device_train_batch_size", 8 // count, "--per_device_eval_batch_size", 4]
        done = subprocess.run(
            command(count, run, *flags, *batch), capture_output=True, text=True, env=clean_environment(**TOGETHER)
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("settings: ") == done.stdout.count("weakest classes on the test") == 1
        assert files_of(run) == EVERY_RUN
        results[count] = json.loads((run / "results.json").read_text())
        assert results[count]["training"]["num_processes"] == count
        # 6 photos of each split over four processes, 36 of the field: every one once, in one order.
        for split in ("validation", "test", "shift"):
            rows, first = predictions_of(run, split), predictions_of(tmp_path / "1", split)
            assert [row["file"] for row in rows] == [row["file"] for row in first]
            assert len({row["file"] for row in rows}) == len(rows) == results[count][split]["n"]
            assert results[count][split]["accuracy"] == results[1][split]["accuracy"]
            # Sums in another order: equal up to rounding.
            assert results[count][split]["log_loss"] == pytest.approx(results[1][split]["log_loss"], rel=1e-3)
    assert len({result["training"]["steps"] for result in results.values()}) == 1


def test_two_processes_begin_with_one_solved_head_and_train_on_the_cached_views_of_one(flags, tmp_path):
    flags += ["--train_layers", "1", "--head_first", "--cached_views", "2", "--num_train_epochs", "3"]
    results = []
    for count in (1, 2):
        run, batch = tmp_path / str(count), ["--per_device_train_batch_size", 8 // count]
        # A cache of its own: both must draw the same views.
        environment = clean_environment(**TOGETHER, HF_DATASETS_CACHE=str(tmp_path / f"cache-{count}"))
        done = subprocess.run(command(count, run, *flags, *batch), text=True, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        for once in ("has the lowest log loss", "cached views: 2 of each"):
            assert done.stdout.count(once) == 1
        results.append(json.loads((run / "results.json").read_text()))
    # The head solves these photos, so that what is left of the loss is near rounding.
    assert results[1]["test"]["log_loss"] == pytest.approx(results[0]["test"]["log_loss"], rel=1e-3, abs=1e-5)
    assert results[1]["training"]["best_step"] == results[0]["training"]["best_step"]


def start(run: Path, flags: list, wait_for: str) -> subprocess.Popen:
    """Two processes under way: started, and given back once one of them said something."""
    log = run.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(
            command(2, run, *flags), stdout=file, stderr=subprocess.STDOUT, env=clean_environment(**TOGETHER)
        )
    end = time.monotonic() + 90
    while wait_for not in log.read_text():
        assert time.monotonic() < end and process.poll() is None, log.read_text()
        time.sleep(0.1)
    return process


def end_of(process: subprocess.Popen, children: list[psutil.Process]) -> int:
    code = process.wait(60)
    _, left = psutil.wait_procs(children, timeout=10)
    assert left == []
    return code


def test_processes_stop_together_with_one_checkpoint_and_go_on_bit_identical(flags, tmp_path):
    flags += ["--num_train_epochs", "20", "--per_device_train_batch_size", "2"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    process = start(run, flags, "epoch 2/20")
    children = psutil.Process(process.pid).children(recursive=True)
    # accelerate hands down no SIGUSR1; torchrun does where it is told to, see slurm/.
    process.send_signal(signal.SIGTERM)
    # The launcher makes 1 of the children's 75; status.json keeps it.
    assert end_of(process, children) != 0
    assert status(run) == {"state": "preempted", "exit_code": 75}
    checkpoints = {path.name for path in run.glob("checkpoints/*")}
    assert 1 <= len(checkpoints) <= 2
    environment = clean_environment(**TOGETHER)
    other = subprocess.run(command(1, run, *flags), capture_output=True, text=True, env=environment)
    assert other.returncode != 0 and "processes was 2, is 1" in other.stderr
    for folder in (run, whole):
        done = subprocess.run(command(2, folder, *flags), capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert ("resuming from" in done.stdout) == (folder == run)
    assert digest(run) == digest(whole)


def test_the_death_of_one_process_ends_all(flags, tmp_path):
    flags += ["--num_train_epochs", "200", "--per_device_train_batch_size", "2"]
    process = start(tmp_path / "run", flags, "epoch 2/200")
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in children if str(ROOT / "train_finetune.py") in child.cmdline()]
    assert len(ranks) == 2
    os.kill(ranks[1].pid, signal.SIGKILL)
    assert end_of(process, children) != 0
    # Nothing that the dying left may pass for a preemption, which would be queued again.
    assert status(tmp_path / "run")["exit_code"] != 75


def test_a_nan_loss_ends_all_processes_and_is_reported_once(flags, tmp_path):
    run = tmp_path / "run"
    # Given twice, the last one counts.
    flags += ["--learning_rate", "1e9", "--num_train_epochs", "20"]
    done = subprocess.run(
        command(2, run, *flags), capture_output=True, text=True, env=clean_environment(**TOGETHER), timeout=120
    )
    assert done.returncode != 0
    assert status(run) == {"state": "failed", "exit_code": DivergedError.exit_code}
    # In the training step or in the validation after it.
    reported = [line for line in done.stderr.splitlines() if "error:" in line and "lower --learning_rate" in line]
    assert len(reported) == 1
