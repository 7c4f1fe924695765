"""How is a linear probe fitted on frozen features?

The features do not change, so they are computed once; the head is then a logistic regression, which has a unique
optimum for each penalty. It is fitted directly, without epochs; the penalty with the lowest log loss on photos that the
head was not fitted to is chosen: the validation photos and, where they are few, folds of the train photos.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from scipy.special import log_softmax
from torch.utils.data import Dataset

from agritransfer.errors import UsageError
from agritransfer.evaluation.intervals import clusters_of
from agritransfer.evaluation.logistic_regression import (
    ENOUGH_PHOTOS,
    Components,
    Judged,
    fit_to_convergence,
    held_out,
    logits_of,
    penalty_path,
)
from agritransfer.evaluation.metrics import macro_f1
from agritransfer.models.freezing import freeze_batchnorm_statistics
from agritransfer.models.structure import find_head
from agritransfer.runtime.process import say
from agritransfer.training.feature_cache import features_of
from agritransfer.training.resume import has_checkpoint
from agritransfer.training.trainer import ImageTrainer
from agritransfer.wording import counted


@dataclass(frozen=True)
class SolvedHead:
    """`weight` (classes, width) and `bias` (classes,), float64, for the best penalty; `sweep` has a row per penalty.

    `held_out` is the number of train photos that helped to choose the penalty.
    """

    weight: np.ndarray
    bias: np.ndarray
    sweep: list[dict[str, float]]
    best: int
    held_out: int


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    of_class: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    groups: Sequence[str],
    views: int = 1,
) -> SolvedHead:
    """Fit a head to features (photos, width) and labels (photos,), each photo weighted by its class.

    With `views` rows per photo, one view after the other, each row counts 1 / views, so that a penalty has the same
    effect for any number of views. The penalty with the lowest log loss, weighted in the same way, on the validation
    photos is chosen. If these are fewer than 1,000, heads are also fitted without some of the train photos, whole
    `groups` (photos,) at a time, and judged by those.
    """
    components, weights = Components.of(features), of_class[labels] / views
    train = Judged(components.scores(features), labels, weights)
    validation = Judged(
        components.scores(validation_features), validation_labels, of_class[validation_labels].astype(np.float64)
    )
    needed = (ENOUGH_PHOTOS - len(validation_labels)) * views
    held = held_out(labels, np.tile(clusters_of(groups), views), needed)

    def row_of(penalty: float, loss: float, coefficients: np.ndarray, *scores: torch.Tensor) -> dict[str, float]:
        of_train, of_validation = (logits_of(of, coefficients) for of in scores)
        row = {"penalty": penalty, "held_out_loss": loss, **_scores("", of_train, labels, of_class)}
        return row | _scores("eval_", of_validation, validation_labels, of_class)

    path = list(penalty_path(train, components.variances, held, validation))
    sweep = [row_of(*found, train.scores, validation.scores) for found in path]
    best = min(range(len(path)), key=lambda number: sweep[number]["held_out_loss"])
    penalty, loss, start = path[best]
    exact = fit_to_convergence(components, features, labels, weights, penalty, start)
    head = exact.coefficients[:, 0]
    sweep[best] = row_of(penalty, loss, head, exact.scores, components.scores(validation_features, torch.float64))
    return SolvedHead(*components.head(head), sweep, best, int(held.sum()) // views)


def _scores(prefix: str, logits: np.ndarray, labels: np.ndarray, of_class: np.ndarray) -> dict[str, float]:
    """Scores with the Trainer's names and weighting."""
    answers, losses = logits.argmax(axis=1), -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    scores = {f"{prefix}loss": float((of_class[labels] * losses).mean())}
    if prefix:
        scores[f"{prefix}accuracy"] = float((answers == labels).mean())
        scores[f"{prefix}macro_f1"] = macro_f1(answers, labels, len(of_class))
    return scores


def solve_head(trainer: ImageTrainer, views: int | None) -> None:
    """Feature extraction without epochs: fit the head of the model and record the fit in the trainer's state.

    It is fitted on `views` augmented views of every train photo, or on the photos without augmentation if `views` is
    None. The state counts a penalty as a step and a pass over the photos as an epoch. Raises `UsageError` for flags
    that a linear probe does not support.
    """
    if trainer.args.label_smoothing_factor:
        raise UsageError(
            "a linear probe does not support --label_smoothing_factor; remove it, or add --augmentation light to train "
            "the head by gradient descent"
        )
    say("only the head is trained, as a linear probe: learning_rate, weight_decay and num_train_epochs have no effect")
    with trainer.times.spent("features and head"):
        solved = _solve_for(trainer, trainer.train_dataset, views)
    passes, state = views or 1, trainer.state
    state.epoch, state.num_train_epochs = float(passes), passes
    state.log_history += [
        {**row, "epoch": float(passes), "step": step} for step, row in enumerate(solved.sweep, start=1)
    ]
    state.global_step = state.max_steps = len(solved.sweep)
    state.best_global_step = solved.best + 1
    best = solved.sweep[solved.best]
    trainer.log({"eval_macro_f1": best["eval_macro_f1"], "eval_accuracy": best["eval_accuracy"], "loss": best["loss"]})


def begin_with_solved_head(trainer: ImageTrainer, train_photos: Dataset) -> None:
    """Fit the head of the model on the pretrained features before fine-tuning starts.

    LP-FT (Kumar et al., ICLR 2022): a random head would first distort the pretrained features. `train_photos` are the
    train photos with evaluation pixels. A run that resumes has a head in its checkpoint, so none is fitted.
    """
    # The head is fitted to features normalized by the pretrained statistics, which differ from those of a batch.
    freeze_batchnorm_statistics(trainer.model, of_frozen_layers_only=False)
    if has_checkpoint(trainer.args):
        say("head: taken from the checkpoint, not fitted again")
        return
    with trainer.times.spent("features and head"):
        _solve_for(trainer, train_photos, None)
    # The fitted head is scored as well, and kept if training makes it worse.
    trainer.args.eval_on_start = trainer.args.load_best_model_at_end


def _solve_for(trainer: ImageTrainer, train_photos: Dataset, views: int | None) -> SolvedHead:
    began = time.perf_counter()
    features = np.concatenate(
        [features_of(trainer, train_photos, view) for view in (range(views) if views else [None])]
    )
    validation = features_of(trainer, trainer.eval_dataset, None)
    seconds = time.perf_counter() - began
    labels = np.tile(train_photos.labels, views or 1)
    head = find_head(trainer.model)[1]
    of_class = np.ones(len(head.weight)) if trainer.class_weights is None else trainer.class_weights.double().numpy()
    solved = [
        solve(
            features,
            labels,
            of_class,
            validation,
            np.array(trainer.eval_dataset.labels),
            train_photos.groups,
            views or 1,
        )
        if PartialState().is_main_process
        else None
    ]
    # Only one process fits the head; the others could differ in the last digits.
    (solved,) = broadcast_object_list(solved) if PartialState().num_processes > 1 else solved
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(solved.weight).view_as(head.weight))
        head.bias.copy_(torch.from_numpy(solved.bias))
    say(_line(solved, len(train_photos), len(trainer.eval_dataset), views, seconds, time.perf_counter() - began))
    return solved


def _line(solved: SolvedHead, photos: int, validation: int, views: int | None, extracting: float, whole: float) -> str:
    """What was fitted, how long it took, how the penalty was chosen, and what validation says of the head."""
    best = solved.sweep[solved.best]
    seen = counted(photos, "photo") + (f", number of views: {views}" if views else "")
    judged = counted(validation, "validation photo")
    if solved.held_out:
        judged += f" and {counted(solved.held_out, 'held-out train photo')}"
    return (
        f"head: fitted on the features of {seen} ({extracting:.0f} s to extract them, {whole - extracting:.1f} s to "
        f"fit); of {len(solved.sweep)} penalties, C={best['penalty']:g} has the lowest log loss on {judged}; "
        f"validation: accuracy {best['eval_accuracy']:.3f}, macro F1 {best['eval_macro_f1']:.3f}, "
        f"log loss {best['eval_loss']:.3f}"
    )
