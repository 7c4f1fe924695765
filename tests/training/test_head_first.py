"""Adapters begin with a fitted head, and a run says whether more epochs would have helped."""

import pytest
import torch
from networks import build
from photo_trainer import trainer_of
from small_trainer import arguments, differing, scores_in_turn, vit, weights
from small_trainer import trainer_of as small_trainer

from agritransfer.data.dataset import Splits, load_splits
from agritransfer.evaluation.results import _training_line
from agritransfer.models.freezing import train_layers
from agritransfer.models.lora import add_lora, merge_lora
from agritransfer.training.learning_curve import say_whether_rising, still_rising
from agritransfer.training.linear_probe import begin_with_solved_head, solve_head


@pytest.fixture(scope="module")
def splits(photos) -> Splits:
    return load_splits(str(photos))


@pytest.mark.parametrize("kind", ["vit", "timm efficientnet"])
def test_adapters_begin_with_the_head_that_feature_extraction_finds(kind, splits, tmp_path):
    alone = build(kind)
    train_layers(alone, "head")
    solve_head(trainer_of(alone, splits, tmp_path, "none"), None)
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": None, "use_dora": False, "use_rslora": False}
    adapted = add_lora(build(kind), image_size=32, **lora)
    trainer = trainer_of(adapted, splits, tmp_path / "lora", learning_rate=0.0, num_train_epochs=1)
    begin_with_solved_head(trainer, splits.dataset("train", trainer.processor))
    trainer.train()
    assert trainer.state.global_step == 3
    merged = merge_lora(adapted).state_dict()
    random_head = build(kind).state_dict()
    heads = 0
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(merged[name].float(), tensor.float(), atol=1e-6), name
        heads += not torch.equal(tensor, random_head[name])
    # Weight and bias of the head, and nothing else, are not those of the base model.
    assert heads == 2


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.9, 0.1, 0.5, 0.8), 0),
        # With the same score, the weights that were trained are kept, and the first of those.
        ((0.8, 0.1, 0.8, 0.8), 4),
        ((0.1, 0.2, 0.3, 0.4), 6),
    ],
)
def test_the_start_is_kept_if_training_makes_it_worse(scores, kept, tmp_path):
    args = arguments(tmp_path, eval_on_start=True, load_best_model_at_end=True, save_total_limit=1)
    model = vit()
    start = weights(model)
    trainer = small_trainer(model, args, compute_metrics=scores_in_turn(*scores))
    trainer.train()
    assert trainer.kept_step == kept
    assert (differing(start, weights(model)) == set()) is (kept == 0)
    saved = type(model).from_pretrained(tmp_path / f"checkpoints/checkpoint-{kept}")
    assert not differing(weights(saved), weights(model))


@pytest.mark.parametrize(("step", "words"), [(0, "the weights that training started from"), (4, "of step 4 of 6")])
def test_the_line_on_training_says_if_the_start_was_kept(step, words):
    training = {"epochs": 3, "best_step": step, "steps": 6, "penalty": None, "trainable_parameters": 1}
    training |= {"total_parameters": 1, "images_per_second": 1.0, "num_processes": 1, "device": "cpu", "seconds": 1.0}
    assert words in _training_line(training)


def test_a_loss_that_rises_from_the_start_keeps_the_start_too(tmp_path):
    flags = {"metric_for_best_model": "eval_loss", "greater_is_better": False, "learning_rate": 1.0}
    args = arguments(tmp_path, eval_on_start=True, load_best_model_at_end=True, lr_scheduler_type="constant", **flags)
    trainer = small_trainer(vit(), args)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 4 and min(losses) == losses[0]
    assert trainer.kept_step == 0


def curve(*scores: float) -> list[dict]:
    return [{"eval_macro_f1": score, "epoch": epoch} for epoch, score in enumerate(scores, start=1)]


@pytest.mark.parametrize(
    ("scores", "rising"),
    [
        ((0.5, 0.6, 0.7, 0.8, 0.81), True),
        ((0.5, 0.6, 0.7, 0.8, 0.809), False),
        ((0.5, 0.6, 0.9, 0.8, 0.85), False),
        # Of ten evaluations, the last two count.
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.85), True),
        ((0.9,), False),
        ((), False),
    ],
)
def test_validation_still_rises_if_the_last_fifth_gained_a_point(scores, rising, capsys):
    assert still_rising(curve(*scores)) is rising
    say_whether_rising(curve(*scores), epochs=5)
    assert ("add epochs, such as --num_train_epochs 10 --restart" in capsys.readouterr().out) is rising


def test_the_penalties_of_a_fitted_head_are_no_epochs():
    assert not still_rising([entry | {"penalty": 0.1} for entry in curve(0.1, 0.2, 0.3, 0.4, 0.9)])
