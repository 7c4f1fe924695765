"""Tests that the trainer ends with the best weights, resumes exactly, and reports what a user can read."""

import math
import os
import re
import shutil
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from networks import LORA
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file, save_file
from small_trainer import PROCESSOR, StopAt, arguments, differing, photos, scores_in_turn, trainer_of, vit, weights
from torch import nn
from transformers import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    Trainer,
    TrainerCallback,
    ViTForImageClassification,
)

from agritransfer.errors import DivergedError, UsageError
from agritransfer.evaluation.trainer_metric import compute_metrics
from agritransfer.images.photo_dataset import collate
from agritransfer.models.freezing import train_layers
from agritransfer.models.layer_decay import layerwise_parameter_groups
from agritransfer.models.lora import add_lora
from agritransfer.models.structure import find_blocks
from agritransfer.runtime.process import physical_cores, prepare_process, say
from agritransfer.runtime.profiling import Times
from agritransfer.training.trainer import load_strictly

# peft 0.21 asks transformers 5.23 by an old name; pytest undoes the filter that strategies.py sets when imported.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


NO_FILES = {"eval_strategy": "no", "save_strategy": "no"}


def convnextv2() -> ConvNextV2ForImageClassification:
    torch.manual_seed(0)
    return ConvNextV2ForImageClassification(
        ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32, num_labels=3)
    )


def vit_with_lora() -> nn.Module:
    return add_lora(vit(), **LORA)


class Remember(TrainerCallback):
    """Keeps a copy of the weights as they are after every epoch."""

    def __init__(self) -> None:
        self.after_epoch: list[dict[str, torch.Tensor]] = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.after_epoch.append(weights(model))


def test_the_stock_trainer_still_ends_with_a_mixture_in_place_of_the_best_model(tmp_path):
    # Documents the bug for which ImageTrainer loads checkpoints itself. When this test fails, transformers has mended
    # it: `_load_from_checkpoint`, `_load_best_model` and `load_strictly` can go, and this test with them.
    def of_numbers(items):
        batch = collate(items)
        return {"pixel_values": batch["pixel_values"] / 255, "labels": batch["labels"]}

    remember = Remember()
    trainer = Trainer(
        model=vit(),
        args=arguments(tmp_path, load_best_model_at_end=True),
        data_collator=of_numbers,
        train_dataset=photos(),
        eval_dataset=photos(),
        compute_metrics=scores_in_turn(0.9, 0.1, 0.2),
        callbacks=[remember],
    )
    trainer.train()
    best = ViTForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    assert differing(weights(best), remember.after_epoch[0]) == set()
    mixed = differing(weights(trainer.model), weights(best))
    assert 0 < len(mixed) < len(best.state_dict())


@pytest.mark.script
@pytest.mark.parametrize("build", [vit, convnextv2, vit_with_lora])
@pytest.mark.parametrize("best_epoch", [1, 2])
def test_the_trainer_ends_with_every_weight_of_the_best_epoch(build, best_epoch, tmp_path):
    remember, values = Remember(), [0.2, 0.3, 0.1]
    values[best_epoch - 1] = 0.9
    args = arguments(tmp_path, load_best_model_at_end=True, save_total_limit=1)
    trainer = trainer_of(build(), args, compute_metrics=scores_in_turn(*values), callbacks=[remember])
    trainer.train()
    assert trainer.state.best_global_step == 2 * best_epoch
    assert differing(remember.after_epoch[best_epoch - 1], remember.after_epoch[2])
    assert differing(weights(trainer.model), remember.after_epoch[best_epoch - 1]) == set()
    if build is vit:
        best = ViTForImageClassification.from_pretrained(tmp_path / "checkpoints" / f"checkpoint-{2 * best_epoch}")
        assert differing(weights(trainer.model), weights(best)) == set()


@pytest.mark.script
@pytest.mark.parametrize("build", [lambda seed: vit(seed, hidden_dropout_prob=0.1), lambda seed: vit_with_lora()])
def test_an_interrupted_and_resumed_run_ends_as_an_uninterrupted_one(build, tmp_path):
    def run(name: str, seed: int, resume_from: str | None = None, callbacks: Sequence[TrainerCallback] = ()):
        args = arguments(tmp_path / name, num_train_epochs=4, lr_scheduler_type="cosine", seed=3)
        trainer = trainer_of(build(seed), args, callbacks=list(callbacks))
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    whole = run("whole", seed=0)
    begun = run("begun", seed=0, callbacks=[StopAt(4)])
    assert (whole.state.global_step, begun.state.global_step) == (8, 4)
    assert differing(weights(begun.model), weights(whole.model))
    # Another seed for the network: all that it begins with must come from the checkpoint.
    resumed = run("begun", seed=1, resume_from=str(tmp_path / "begun" / "checkpoints" / "checkpoint-4"))
    assert resumed.state.global_step == 8
    assert differing(weights(resumed.model), weights(whole.model)) == set()


def test_checkpoints_lie_in_their_own_folder_and_only_the_best_and_the_last_stay(tmp_path):
    args = arguments(tmp_path, save_total_limit=2, load_best_model_at_end=True, num_train_epochs=4)
    trainer_of(vit(), args, compute_metrics=scores_in_turn(0.9, 0.1, 0.2, 0.3)).train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-8"]


def test_a_checkpoint_that_lacks_weights_is_not_loaded(tmp_path):
    vit().save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in saved.items() if name != "classifier.weight"}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"lacks.*classifier\.weight"):
        load_strictly(vit(seed=1), str(tmp_path))


def test_the_rates_of_the_groups_reach_the_optimizer(tmp_path):
    model = vit()
    groups = layerwise_parameter_groups(
        model, learning_rate=0.01, layer_decay=0.5, head_learning_rate=0.3, weight_decay=0.05
    )
    args = arguments(tmp_path, max_steps=1, **NO_FILES, lr_scheduler_type="constant")
    trainer = trainer_of(model, args, parameter_groups=groups)
    trainer.train()
    used = [(group["lr"], group["weight_decay"], len(group["params"])) for group in trainer.optimizer.param_groups]
    assert used == [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups]
    assert {rate for rate, *_ in used} == {0.01 / 8, 0.01 / 4, 0.01 / 2, 0.01, 0.3}


def test_the_time_of_a_stage_is_counted_once(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 5.0, 6.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    times = Times()
    with times.spent("the rest"):
        with times.spent("steps"):
            pass
        with times.spent("steps"):
            pass
    assert times.seconds == {"steps": 3.0 + 1.0, "the rest": 10.0 - 4.0}
    assert times.line() == "time, 10 s: the rest 60%, steps 40%"


def test_a_run_tells_where_all_of_its_time_went(tmp_path):
    trainer = trainer_of(vit(), arguments(tmp_path))
    started = time.perf_counter()
    trainer.train()
    assert sum(trainer.times.seconds.values()) == pytest.approx(time.perf_counter() - started, rel=0.05)
    stages = {"waiting for photos", "augmentation", "forward and backward", "validation", "checkpoints"}
    assert set(trainer.times.seconds) == stages | {"optimizer and the rest"}
    assert min(trainer.times.seconds.values()) > 0


def test_evaluation_pixels_are_those_of_the_processor_and_training_pixels_those_of_the_augmentation(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8))
    batch = collate([{"pixel_values": PROCESSOR.pixels(image), "labels": 1, "files": "a.jpg"}])
    trainer = trainer_of(
        vit(), arguments(tmp_path), augment=lambda batch: (batch["pixel_values"] * 0.0, batch["labels"] + 1)
    )
    prepared = trainer.model_inputs(batch, augmented=False)
    expected = PROCESSOR.library(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(prepared["pixel_values"], expected, atol=1e-5)
    assert prepared["labels"].tolist() == [1]
    prepared = trainer.model_inputs(batch, augmented=True)
    black = -torch.tensor([0.2, 0.4, 0.6]) / torch.tensor([0.3, 0.2, 0.1])
    assert torch.allclose(prepared["pixel_values"], black.view(1, 3, 1, 1).expand(1, 3, 32, 32))
    assert prepared["labels"].tolist() == [2]


@pytest.mark.parametrize("logging", [{}, {"logging_strategy": "steps", "logging_steps": 500, "eval_strategy": "no"}])
def test_a_nan_pixel_ends_the_run_with_exit_code_5(logging, tmp_path):
    args = arguments(tmp_path, **logging)
    trainer = trainer_of(vit(), args, augment=lambda batch: (batch["pixel_values"] * math.nan, batch["labels"]))
    with pytest.raises(
        DivergedError, match=r"the loss is NaN or infinite at step 1, on (\d\.jpg, ){3}\d\.jpg; lower --learning_rate"
    ) as caught:
        trainer.train()
    assert caught.value.exit_code == 5


def test_a_rate_that_is_far_too_high_ends_the_run_before_its_weights_are_saved(tmp_path):
    args = arguments(tmp_path, optim="sgd", learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(DivergedError):
        trainer_of(vit(), args).train()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_step_that_gives_nan_weights_ends_the_run_in_the_validation_after_it(tmp_path):
    args = arguments(tmp_path, optim="sgd", learning_rate=1e30, max_grad_norm=0.0, per_device_train_batch_size=8)
    with pytest.raises(DivergedError, match="the validation photos are NaN or infinite; lower --learning_rate"):
        trainer_of(vit(), args, compute_metrics=compute_metrics).train()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_worker_whose_socket_closes_before_torch_learns_of_its_end_is_told_of_as_killed(tmp_path, monkeypatch):
    def reset(*_):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(Trainer, "get_batch_samples", reset)
    with pytest.raises(RuntimeError, match="a loader worker was killed by signal; run the same command again"):
        trainer_of(vit(), arguments(tmp_path)).train()


def test_training_stops_after_as_many_evaluations_without_gain_as_were_granted(tmp_path):
    args, scores = arguments(tmp_path, num_train_epochs=5, load_best_model_at_end=True), (0.1, 0.5, 0.4, 0.5, 0.9)
    trainer = trainer_of(vit(), args, early_stopping_patience=2, compute_metrics=scores_in_turn(*scores))
    trainer.train()
    assert (trainer.state.epoch, trainer.state.best_global_step) == (4, 4)


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_one_readable_line_an_epoch_and_one_forecast_are_printed(disable_tqdm, tmp_path, capsys):
    args = arguments(tmp_path, num_train_epochs=4, disable_tqdm=disable_tqdm, save_strategy="no")
    trainer_of(vit(), args, compute_metrics=scores_in_turn(0.25, 0.5, 0.75, 1.0)).train()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    forecast = [line for line in lines if line.startswith("forecast")]
    assert len(forecast) == 1
    assert re.fullmatch(r"forecast: about \d+ s left \(\d+\.\d\d s per step, 8 steps\)", forecast[0])
    epochs = [line for line in lines if line not in forecast]
    assert len(epochs) == 4
    for number, (line, value) in enumerate(zip(epochs, ("0.250", "0.500", "0.750", "1.000"), strict=True), start=1):
        expected = rf"epoch {number}/4  loss \d+\.\d{{3}}  validation: macro F1 {value}, accuracy {value}"
        assert re.fullmatch(expected, line)


def test_a_process_is_seeded_and_gets_its_share_of_the_cores(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    try:
        prepare_process(arguments(tmp_path, seed=5))
        drawn = torch.rand(3), np.random.rand(3)
        assert torch.get_num_threads() == physical_cores()
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * os.cpu_count()))
        prepare_process(arguments(tmp_path, seed=5))
        assert torch.get_num_threads() == 1
        assert torch.equal(torch.rand(3), drawn[0])
        assert np.array_equal(np.random.rand(3), drawn[1])
    finally:
        torch.set_num_threads(threads)


def test_what_is_said_is_printed_line_by_line(capsys):
    say("two classes", "nine photos")
    assert capsys.readouterr().out == "two classes\nnine photos\n"


class RememberSteps(TrainerCallback):
    """Keeps a copy of the weights after every step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = weights(model)


EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "logging_strategy": "steps"}
BEST = {"load_best_model_at_end": True, "save_total_limit": 1}
# Of eight steps, in the order in which they are evaluated; the best is neither first nor last nor on a third step.
SCORES = (0.3, 0.2, 0.4, 0.1, 0.9, 0.5, 0.8, 0.6)


@pytest.mark.parametrize(
    ("flags", "patience", "steps", "best"),
    [
        # Two steps an epoch.
        ({}, None, 8, None),
        ({**BEST}, None, 8, 6),
        ({**BEST, "eval_on_start": True}, None, 8, 0),
        ({"eval_on_start": True}, 2, 8, None),
        ({}, 1, 4, None),
        ({**BEST}, 1, 4, 2),
        ({**BEST, **EVERY_STEP, "save_steps": 3}, None, 8, 5),
        ({**BEST, **EVERY_STEP, "eval_steps": 0.125, "save_steps": 0.5}, None, 8, 5),
        ({**BEST, **EVERY_STEP, "save_steps": 8}, 2, 7, 5),
        ({**EVERY_STEP, "save_steps": 3}, 2, 7, None),
        ({**BEST, **EVERY_STEP, "save_steps": 8, "eval_delay": 9}, None, 8, None),
        ({**BEST, **EVERY_STEP, "save_strategy": "best"}, None, 8, 5),
        ({**BEST, "save_strategy": "best"}, None, 8, 6),
        ({"save_strategy": "best"}, None, 8, None),
        ({"save_strategy": "no"}, None, 8, None),
        ({"save_strategy": "no", "eval_strategy": "no"}, None, 8, None),
        ({**BEST, "metric_for_best_model": "eval_macro_f1", "greater_is_better": False}, None, 8, 4),
    ],
)
def test_the_weights_are_those_of_the_step_that_is_named(flags, patience, steps, best, tmp_path):
    def run(scores, *callbacks, resume_from=None):
        args = arguments(tmp_path, num_train_epochs=4, **flags)
        metrics = {"early_stopping_patience": patience, "compute_metrics": scores_in_turn(*scores)}
        trainer = trainer_of(vit(), args, **metrics, callbacks=[remember, *callbacks])
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    def check(trainer):
        assert (trainer.state.global_step, trainer.state.best_global_step) == (steps, best)
        assert differing(weights(trainer.model), remember.after[steps if best is None else best]) == set()

    remember = RememberSteps()
    remember.after[0] = weights(vit())
    # By epoch the best score is the third, at step 6.
    by_epoch = flags.get("eval_strategy") != "steps"
    scores = (0.3, 0.2, 0.9, 0.5, 0.1) if by_epoch else SCORES
    scores = (0.9, 0.3, 0.7, 0.2, 0.1) if flags.get("eval_on_start") else scores
    scores = (0.3, 0.2, 0.9, 0.5) if flags.get("greater_is_better") is False else scores
    trainer = run(scores)
    checkpoints = sorted(tmp_path.glob("checkpoints/*"), key=lambda path: int(path.name.split("-")[1]))
    check(trainer)
    if checkpoints:
        # From the first checkpoint that is left, as if the run had been cut off after it.
        begun, at_start = int(checkpoints[0].name.split("-")[1]), "eval_on_start" in flags
        for later in checkpoints[1:]:
            shutil.rmtree(later)
        seen = at_start + (begun // 2 if by_epoch else begun)
        check(run((*scores[:at_start], *scores[seen:]), resume_from=str(checkpoints[0])))


def last_block() -> nn.Module:
    model = vit()
    train_layers(model, "1")
    return model


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize(("build", "parts"), [(vit_with_lora, 2), (last_block, 1)])
@pytest.mark.parametrize("steps", [2, 9])
def test_what_gets_no_gradient_through_checkpointing_ends_the_run_and_without_it_moves(build, parts, steps, tmp_path):
    def run(name: str, **kwargs):
        args = arguments(tmp_path / name, gradient_checkpointing=True, max_steps=steps, warmup_steps=1, **kwargs)
        trainer_of(build(), args).train()

    run("default")
    run("other", gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(UsageError, match=f"{parts} parts? of the network .* did not move in {min(steps - 1, 5)} step"):
        run("reentrant", gradient_checkpointing_kwargs={"use_reentrant": True})


def test_weight_decay_alone_is_no_movement_and_a_rate_of_zero_no_fault(tmp_path):
    model, rates = vit_with_lora(), {"max_steps": 6, "weight_decay": 0.1, "lr_scheduler_type": "constant"}
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # The adapters get gradients, all of them zero.
            module.scaling["default"] = 0.0
    with pytest.raises(UsageError, match=r"such as base_model.model.vit.layers.0: no gradient reaches them"):
        trainer_of(model, arguments(tmp_path, **rates, **NO_FILES)).train()
    model = vit()
    head = {"params": list(model.classifier.parameters()), "lr": 0.0}
    rest = {"params": list(model.vit.parameters()), "lr": 0.01}
    for groups, fault in (([rest, head], False), ([rest], True)):
        trainer = trainer_of(model, arguments(tmp_path, **rates, **NO_FILES), parameter_groups=groups)
        if not fault:
            trainer.train()
            continue
        with pytest.raises(UsageError, match="1 part of the network .* such as classifier"):
            trainer.train()


class AllButLast(nn.ModuleList):
    """Blocks of which the network does not run the last one, as SigLIP does not run its attention pooling."""

    def __iter__(self):
        return iter(list(super().__iter__())[:-1])


def test_a_block_that_no_photo_passes_through_is_no_fault(tmp_path):
    model = vit(num_hidden_layers=3)
    model.vit.layers = AllButLast(list(model.vit.layers))
    assert len(find_blocks(model)) == 3
    trainer_of(model, arguments(tmp_path, max_steps=6, **NO_FILES)).train()


@pytest.mark.parametrize(
    "flags", [{"max_steps": 1, "warmup_steps": 1}, {"max_steps": 6, "gradient_accumulation_steps": 2}]
)
def test_a_warm_up_step_and_accumulated_steps_are_no_fault(flags, tmp_path):
    trainer_of(vit_with_lora(), arguments(tmp_path, **flags, **NO_FILES)).train()


def test_dropping_the_last_batch_is_for_training_only(tmp_path):
    args = arguments(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=5, per_device_eval_batch_size=3)
    seen = []

    def scores(prediction):
        seen.append(len(prediction.label_ids))
        return {"macro_f1": 0.5, "accuracy": 0.5}

    trainer = trainer_of(vit(), args, compute_metrics=scores)
    trainer.train()
    # Eight photos: one whole batch an epoch; all are scored.
    assert (trainer.state.global_step, seen) == (3, [8, 8, 8])
    assert trainer.args.dataloader_drop_last


def test_dropping_all_photos_is_refused_with_the_numbers(tmp_path):
    args = arguments(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=9)
    with pytest.raises(UsageError, match=r"drop all 8 training photos, which do not fill a batch of 9; remove it or"):
        trainer_of(vit(), args).train()
    trainer_of(vit(), arguments(tmp_path, per_device_train_batch_size=9, max_steps=1, **NO_FILES)).train()
