"""Training that ended early, by its score or by its minutes, has ended for good."""

import json

import pytest
from small_trainer import arguments, differing, scores_in_turn, trainer_of, vit, weights
from transformers import TrainerCallback

from agritransfer.training.checkpoints import newest_checkpoint
from agritransfer.training.time_limit import TimeLimit
from agritransfer.training.trainer import has_ended

FALLING = (0.5, 0.4, 0.3, 0.2, 0.1)


class Clock:
    """Replaces the seconds of the time limit; the test moves it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Pass(TrainerCallback):
    """Lets time pass in every step."""

    def __init__(self, clock: Clock, seconds: float):
        self.clock, self.seconds = clock, seconds

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.now += self.seconds


@pytest.mark.parametrize("load_best", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_that_stopped_early_does_not_train_on_when_it_is_started_again(load_best, tmp_path):
    changes = {"num_train_epochs": 9, "load_best_model_at_end": load_best, "save_total_limit": 1}
    first = trainer_of(
        vit(), arguments(tmp_path, **changes), compute_metrics=scores_in_turn(*FALLING), early_stopping_patience=2
    )
    first.train()
    assert first.state.epoch == 3 and first.state.best_global_step == (2 if load_best else None)
    newest, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert newest.name == "checkpoint-6" and has_ended(newest)

    # No score is left to ask for: neither a step nor a validation follows.
    again = trainer_of(
        vit(seed=1), arguments(tmp_path, **changes), compute_metrics=scores_in_turn(), early_stopping_patience=2
    )
    again.train(resume_from_checkpoint=str(newest))
    assert not differing(weights(first.model), weights(again.model))
    assert (again.state.global_step, again.state.best_global_step) == (6, first.state.best_global_step)
    assert sum(again.times.seconds.values()) > 0


def limited(folder, clock, minutes, resume=None, **changes):
    trainer = trainer_of(
        vit(), arguments(folder, num_train_epochs=9, **changes), callbacks=[Pass(clock, 30)], max_minutes=minutes
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_training_ends_before_the_epoch_that_would_take_too_long(tmp_path, monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr("agritransfer.training.time_limit.time", clock)
    # An epoch takes 60 s and each validation is taken to need a third of that, so 100 s must be left after an epoch.
    trainer = limited(tmp_path / "a", clock, 4)
    assert trainer.state.epoch == 3
    assert "--max_minutes 4: training ends after epoch 3 of 9" in capsys.readouterr().out
    assert has_ended(newest_checkpoint(tmp_path / "a/checkpoints")[0])
    # One epoch is always trained; with `--save_strategy steps` its end is saved and scored too.
    steps = {"save_strategy": "steps", "save_steps": 50, "eval_strategy": "steps", "eval_steps": 50}
    trainer = limited(tmp_path / "b", clock, 0.1, **steps)
    assert trainer.state.epoch == 1 and has_ended(tmp_path / "b/checkpoints/checkpoint-2")
    assert [entry["eval_macro_f1"] for entry in trainer.state.log_history if "eval_macro_f1" in entry] == [0.1]


def test_the_minutes_before_an_interruption_count(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("agritransfer.training.time_limit.time", clock)
    whole = limited(tmp_path, clock, 6, save_total_limit=None)
    assert whole.state.epoch == 5
    first = tmp_path / "checkpoints/checkpoint-2"
    saved = json.loads((first / "trainer_state.json").read_text())["stateful_callbacks"]["TimeLimit"]
    assert saved["attributes"] == {"earlier": 60.0}
    resumed = limited(tmp_path / "other", clock, 6, resume=str(first))
    # The restored limit replaces the new one; with its minutes it ends where the first run did.
    assert resumed.state.epoch == 5
    assert sum(isinstance(callback, TimeLimit) for callback in resumed.callback_handler.callbacks) == 1
