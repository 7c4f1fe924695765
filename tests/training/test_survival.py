"""The real scripts, killed at chosen and at random moments: the same command ends with the same weights, bit by bit.

Each run is a chain: a fault ends every session but the last. Together the chains cover every pair of model, number of
loader workers, fault and moment.
"""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from survival import FullDisk, KillInSave, KillOneWorker, Poison, Session, SignalAtStep, SlowSave, digest, status
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

pytestmark = pytest.mark.slow


# Six steps an epoch, three epochs.
MID_EPOCH, EPOCH_END = (2, 9, 16), (6, 12, 18)


SEED = 20261125


@pytest.fixture(scope="module")
def commands(photos, tmp_path_factory) -> dict[str, list]:
    """The command of each model; all with dropout, drop path or adapters' dropout, and with augmentation."""
    folder = tmp_path_factory.mktemp("models") / "vit"
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(
        ViTConfig(**tiny, image_size=32, patch_size=8, num_labels=2, hidden_dropout_prob=0.1)
    ).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    shared = ["--dataset_name", photos, "--num_train_epochs", 3, "--per_device_train_batch_size", 4, "--use_cpu"]
    shared += ["--learning_rate", 0.01]
    return {
        # A fitted head would solve these photos at once, and the weights that it starts from would be kept.
        "vit": ["train_finetune.py", *shared, "--model_name_or_path", folder, "--no_head_first"],
        "lora": ["train_lora.py", *shared, "--model_name_or_path", folder, "--lora_dropout", 0.1],
        "convnextv2": [
            *("train_scratch.py", *shared, "--model_type", "convnextv2", "--model_size", "nano"),
            *("--image_size", 32, "--augmentation", "strong"),
        ],
    }


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory) -> dict[str, str]:
    """The digest of the weights of each run that nothing cut off."""
    digests = {}
    for name, command in commands.items():
        run = tmp_path_factory.mktemp("whole") / name
        session = start(command, run, workers=0)
        assert session.code == 0, session.said
        digests[name] = digest(run)
    return digests


def start(command: list, run: Path, workers: int, prelude=None, during=None) -> Session:
    flags = ["--output_dir", run, "--dataloader_num_workers", workers]
    # Stored pixels have no loader workers.
    flags += ["--pixel_store", "off"] if workers else []
    session = Session(
        [ROOT / command[0], *command[1:], *flags], run.with_suffix(".log"), prelude=prelude, during=during
    )
    assert session.left() == [], "processes were left behind"
    return session


# A chain for each pair of model and number of workers; the faults take turns, so that each meets every other factor.
CHAINS = {
    ("vit", 0): [("SIGTERM", MID_EPOCH[0]), ("SIGKILL", EPOCH_END[0]), ("in save", 2), ("SIGUSR1", EPOCH_END[1])],
    ("vit", 2): [("SIGKILL", MID_EPOCH[0]), ("SIGUSR1", MID_EPOCH[1]), ("Ctrl-C", EPOCH_END[1]), ("in save", 1)],
    ("lora", 0): [("Ctrl-C", MID_EPOCH[0]), ("in save", 1), ("SIGTERM", EPOCH_END[0]), ("SIGKILL", MID_EPOCH[1])],
    ("lora", 2): [("SIGUSR1", EPOCH_END[0]), ("SIGTERM", MID_EPOCH[1]), ("SIGKILL", EPOCH_END[1]), ("in save", 2)],
    ("convnextv2", 0): [("SIGUSR1", MID_EPOCH[0]), ("SIGKILL", MID_EPOCH[1]), ("Ctrl-C", EPOCH_END[1])],
    ("convnextv2", 2): [("in save", 1), ("SIGTERM", MID_EPOCH[1]), ("SIGKILL", EPOCH_END[1]), ("SIGTERM", 18)],
}


NUMBERS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1, "SIGKILL": signal.SIGKILL, "Ctrl-C": signal.SIGINT}


def test_the_chains_cover_every_pair_of_factors():
    pairs = set()
    for (model, workers), faults in CHAINS.items():
        for fault, place in faults:
            moment = "save" if fault == "in save" else "mid-epoch" if place % 6 else "epoch end"
            pairs |= {(model, fault), (workers, fault), (fault, moment), (model, moment), (workers, moment)}
    faults = {*NUMBERS, "in save"}
    expected = {(factor, fault) for factor in ("vit", "lora", "convnextv2", 0, 2) for fault in faults}
    expected |= {
        (factor, moment)
        for factor in ("vit", "lora", "convnextv2", 0, 2)
        for moment in ("mid-epoch", "epoch end", "save")
    }
    expected |= {(fault, moment) for fault in NUMBERS for moment in ("mid-epoch", "epoch end")}
    assert expected <= pairs, expected - pairs


@pytest.mark.parametrize(("model", "workers"), list(CHAINS))
def test_a_run_that_is_interrupted_again_and_again_ends_bit_identical(model, workers, commands, whole, tmp_path):
    run = tmp_path / "run"
    for fault, place in CHAINS[model, workers]:
        prelude = SlowSave(place) if fault == "in save" else SignalAtStep(NUMBERS[fault], place)
        session = start(commands[model], run, workers, prelude)
        if fault in ("SIGKILL", "in save"):
            assert session.code == -signal.SIGKILL, session.said
        else:
            assert session.code == 75, session.said
            assert status(run) == {"state": "preempted", "exit_code": 75}
            assert f"the checkpoint of step {place} is complete" in session.said
            assert not (run / "results.json").exists() and not (run / "model.safetensors").exists()
    session = start(commands[model], run, workers)
    assert session.code == 0 and "resuming from" in session.said, session.said
    assert digest(run) == whole[model]


def kill_again_and_again(times: int, begin: Callable[[Path], Session], end: str, folder: Path) -> Path:
    """Begin a run so often that it was killed so many times; gives the last, unfinished one. All that end are alike."""
    run, killed = folder / "run", 0
    while killed < times:
        session = begin(run)
        if session.code == 0:
            # Over before its turn: the next kills hit another run.
            assert digest(run) == end
            run = folder / f"run{killed}"
            continue
        assert session.code == -signal.SIGKILL, session.said
        killed += 1
    return run


@pytest.mark.parametrize("model", ["vit", "lora", "convnextv2"])
def test_a_run_that_is_killed_between_any_two_operations_on_its_files_ends_bit_identical(
    model, commands, whole, tmp_path
):
    draw = random.Random(f"{SEED} {model}")
    run = kill_again_and_again(
        10, lambda run: start(commands[model], run, 0, KillInSave(draw.randrange(1, 35))), whole[model], tmp_path
    )
    session = start(commands[model], run, 0)
    assert session.code == 0, session.said
    assert digest(run) == whole[model]


@pytest.mark.parametrize("model", ["vit", "lora", "convnextv2"])
def test_a_run_that_is_killed_at_random_moments_ends_bit_identical(model, commands, whole, tmp_path):
    draw = random.Random(f"{SEED} {model}")

    def kill_later(process):
        time.sleep(draw.uniform(0.3, 1.8))
        process.kill()

    run = kill_again_and_again(6, lambda run: start(commands[model], run, 0, during=kill_later), whole[model], tmp_path)
    session = start(commands[model], run, 0)
    assert session.code == 0, session.said
    assert digest(run) == whole[model]


def test_a_loader_worker_that_is_killed_ends_the_run_and_the_same_command_resumes(commands, whole, tmp_path):
    session = start(commands["vit"], tmp_path / "run", 2, KillOneWorker(step=8))
    assert session.code == 1 and "killed by signal" in session.said
    assert status(tmp_path / "run") == {"state": "failed", "exit_code": 1}
    assert start(commands["vit"], tmp_path / "run", 2).code == 0
    assert digest(tmp_path / "run") == whole["vit"]


def test_a_full_disk_ends_the_run_with_the_earlier_checkpoint_whole(commands, whole, tmp_path):
    run = tmp_path / "run"
    session = start(commands["vit"], run, 0, FullDisk(step=8, most=40_000))
    assert session.code == 1 and "checkpoint-12 could not be written" in session.said, session.said
    assert session.said.strip().endswith("free some disk space and run the same command again to resume")
    assert [path.name for path in run.glob("checkpoints/*")] == ["checkpoint-6"]
    assert start(commands["vit"], run, 0).code == 0
    assert digest(run) == whole["vit"]


def test_a_nan_loss_ends_the_run_and_names_the_photos_of_its_batch(commands, whole, tmp_path):
    run = tmp_path / "run"
    session = start(commands["vit"], run, 2, Poison(step=8))
    assert session.code == 5, session.said
    named = session.said.split("the loss is NaN or infinite at step 9, on ")[1].split(";")[0].split(", ")
    assert len(named) == 4 and all((commands["vit"][2] / name).is_file() for name in named)
    assert status(run) == {"state": "failed", "exit_code": 5}
    assert [path.name for path in run.glob("checkpoints/*")] == ["checkpoint-6"]
    assert start(commands["vit"], run, 0).code == 0
    assert digest(run) == whole["vit"]


def test_ctrl_c_twice_ends_the_run_at_once_without_a_process_left(commands, tmp_path):
    session = start(commands["vit"], tmp_path / "run", 2, SignalAtStep(signal.SIGINT, 3, times=2))
    assert session.code == 130, session.said
    assert status(tmp_path / "run") == {"state": "interrupted", "exit_code": 130}
    assert not list((tmp_path / "run").glob("checkpoints/*"))
