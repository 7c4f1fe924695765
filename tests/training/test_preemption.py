"""A signal, Ctrl-C or a NaN loss ends a run as it should, and leaves what it should."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from small_trainer import arguments, differing, photos, scores_in_turn, trainer_of, vit, weights
from transformers import TrainerCallback

from agritransfer.errors import DivergedError, Preempted, StorageError
from agritransfer.training import trainer as training
from agritransfer.training.checkpoints import fault_of
from agritransfer.training.preemption import ignore_signals, preemptible

# Whole trainings, each cut off and resumed.
pytestmark = pytest.mark.script


class At(TrainerCallback):
    """Does something as a step ends, before the Trainer's own callbacks learn of it."""

    def __init__(self, step: int, act):
        self.step, self.act = step, act

    def on_optimizer_step(self, args, state, control, **kwargs):
        # The step that is being taken is counted afterwards.
        if state.global_step + 1 == self.step:
            self.act()


def send(number: int):
    return lambda: os.kill(os.getpid(), number)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/*"))


def train(folder: Path, *callbacks: TrainerCallback, resume: str | None = None, **changes):
    args = arguments(folder, seed=3, num_train_epochs=3, **changes)
    trainer = trainer_of(vit(hidden_dropout_prob=0.1), args, callbacks=list(callbacks))
    with preemptible():
        trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 3), (signal.SIGINT, 4), (signal.SIGTERM, 6)]
)
def test_a_signal_leaves_one_complete_checkpoint_from_which_the_run_ends_alike(number, step, tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Preempted) as caught:
        train(tmp_path / "cut", At(step, send(number)), save_strategy="no")
    assert caught.value.exit_code == 75 and f"the checkpoint of step {step} is complete" in str(caught.value)
    assert saved(tmp_path / "cut") == [f"checkpoint-{step}"]
    checkpoint = tmp_path / "cut" / "checkpoints" / f"checkpoint-{step}"
    assert fault_of(checkpoint) is None
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    # Two steps an epoch: only an epoch's end is evaluated.
    assert sum("eval_macro_f1" in entry for entry in state["log_history"]) == step // 2
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    whole = train(tmp_path / "whole", save_strategy="no")
    resumed = train(tmp_path / "cut", resume=str(checkpoint), save_strategy="no")
    assert differing(weights(whole.model), weights(resumed.model)) == set()


def test_a_callback_that_was_added_last_still_sees_the_checkpoint_of_a_preempted_run(tmp_path):
    class Upload(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            uploaded.append(fault_of(Path(args.output_dir) / f"checkpoints/checkpoint-{state.global_step}"))

    uploaded = []
    trainer = trainer_of(vit(), arguments(tmp_path, save_strategy="no"), callbacks=[At(3, send(signal.SIGTERM))])
    trainer.add_callback(Upload())
    with pytest.raises(Preempted, match="the checkpoint of step 3 is complete"), preemptible():
        trainer.train()
    assert uploaded == [None]


def test_the_second_ctrl_c_ends_training_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, At(1, twice))
    assert saved(tmp_path) == []


def test_a_signal_outside_of_training_ends_the_run_where_it_stands():
    with pytest.raises(Preempted, match="received SIGTERM"), preemptible():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        pytest.fail("went on")


def test_no_worker_is_left_though_it_ignores_what_a_scheduler_sends():
    with preemptible():
        worker = multiprocessing.get_context("fork").Process(target=wait_for_ever, daemon=True)
        worker.start()
        time.sleep(0.3)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(worker.pid, number)
        time.sleep(0.3)
        assert worker.is_alive()
    worker.join(5)
    assert worker.exitcode == -signal.SIGKILL


def wait_for_ever() -> None:
    ignore_signals()
    time.sleep(600)


def test_a_photo_that_makes_the_loss_nan_ends_the_run_within_its_step_by_name(tmp_path):
    seen = []

    class Spy(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    items = photos()

    def augment(batch: dict):
        # The last step of the second epoch.
        bad = len(seen) == 3 and "checkpoint-2" in saved(tmp_path)
        return batch["pixel_values"] * (float("nan") if bad else 1.0), batch["labels"]

    args = arguments(tmp_path, seed=3)
    trainer = trainer_of(vit(), args, augment=augment, callbacks=[Spy()], train_dataset=items)
    with pytest.raises(DivergedError, match=r"NaN or infinite at step 4, on (\d\.jpg, ){3}\d\.jpg; lower") as caught:
        trainer.train()
    assert caught.value.exit_code == 5 and seen == [1, 2, 3, 4]
    assert saved(tmp_path) == ["checkpoint-2"]
    assert fault_of(tmp_path / "checkpoints/checkpoint-2") is None


def test_nan_weights_do_not_push_a_good_checkpoint_out(tmp_path):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                next(model.parameters()).data[:] = float("inf")

    args = arguments(tmp_path, eval_strategy="no", save_total_limit=1)
    with pytest.raises(DivergedError, match="has NaN or infinite weights after step 4"):
        trainer_of(vit(), args, callbacks=[Spoil()]).train()
    assert saved(tmp_path) == ["checkpoint-2"]


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_half_one(tmp_path, monkeypatch):
    class FillDisk(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if state.global_step:
                monkeypatch.setattr(torch, "save", self.full)

        def full(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    with pytest.raises(
        StorageError, match=r"checkpoint-4 could not be written .*No space left.* free some disk space"
    ) as caught:
        trainer_of(vit(), arguments(tmp_path, save_total_limit=1), callbacks=[FillDisk()]).train()
    assert caught.value.exit_code == 1
    assert saved(tmp_path) == ["checkpoint-2"] and fault_of(tmp_path / "checkpoints/checkpoint-2") is None


def test_an_old_checkpoint_goes_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    there = []
    stock = training.write_manifest

    def write_manifest(checkpoint: Path) -> None:
        there.append(saved(tmp_path))
        stock(checkpoint)

    monkeypatch.setattr(training, "write_manifest", write_manifest)
    trainer_of(vit(), arguments(tmp_path, save_total_limit=1, eval_strategy="no")).train()
    assert there == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"], ["checkpoint-4", "checkpoint-6"]]
    assert saved(tmp_path) == ["checkpoint-6"]


def test_the_best_weights_are_not_loaded_from_a_damaged_checkpoint(tmp_path):
    class Flip(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            path = tmp_path / "checkpoints/checkpoint-2/model.safetensors"
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    args = arguments(tmp_path, load_best_model_at_end=True)
    with pytest.raises(StorageError, match="the best weights are lost: .*checkpoint-2 has a model.safetensors"):
        trainer_of(vit(), args, compute_metrics=scores_in_turn(0.9, 0.1, 0.2), callbacks=[Flip()]).train()
