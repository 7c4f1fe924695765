"""Which head is the best one where nothing else moves?

The features do not move either, so they are computed once; on them the head is a logistic regression, which has one
best solution for each strength of its penalty. It is found, not approached by epochs; validation chooses the strength.
"""

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.utils.data import Dataset

from agritransfer.errors import UsageError
from agritransfer.evaluation.metrics import macro_f1
from agritransfer.models.freezing import freeze_batchnorm_statistics
from agritransfer.models.structure import find_head
from agritransfer.runtime.process import say
from agritransfer.training.partial_forward import activations, batches_of
from agritransfer.training.trainer import ImageTrainer

# Inverse strengths of the penalty on standardised features, the strongest first: each begins where the last one ended.
PENALTIES = tuple(float(f"{strength:.3g}") for strength in np.logspace(-5, 2, 22))
# Weaker ones only fit the train photos closer, and take longest.
WITHOUT_GAIN = 6
MOST_ITERATIONS = 2000


@dataclass(frozen=True)
class SolvedHead:
    """`weight` (classes, width) and `bias` (classes,) in float64 of the best penalty; a row of `sweep` for each one."""

    weight: np.ndarray
    bias: np.ndarray
    sweep: list[dict[str, float]]
    best: int


def solve(
    features: np.ndarray,
    labels: np.ndarray,
    of_class: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    views: int = 1,
) -> SolvedHead:
    """The head for features (photos, width) and labels (photos,), each photo counted by the weight of its class.

    Of `views` rows a photo each counts for its share, so that a penalty weighs the same whatever their number.
    Of the penalties the one with the highest validation macro F1 is taken, of equals that with the lowest log loss.
    """
    scaler = StandardScaler().fit(features.astype(np.float64))
    scaled = scaler.transform(features.astype(np.float64))
    nearly = scaled.astype(np.float32)
    weights = of_class[labels] / views
    # Near enough to choose among penalties; the one that is chosen is solved to its end.
    model = LogisticRegression(tol=1e-4, max_iter=MOST_ITERATIONS, warm_start=True)
    sweep: list[dict[str, float]] = []
    best = 0

    def scored(penalty: float, head: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
        row = {"penalty": penalty, **_scores("", features, labels, of_class, head)}
        return row | _scores("eval_", validation_features, validation_labels, of_class, head)

    for penalty in PENALTIES:
        with warnings.catch_warnings():
            # Looked at below.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=penalty).fit(nearly, labels, sample_weight=weights)
        if model.n_iter_[0] >= MOST_ITERATIONS and sweep:
            break
        sweep.append(scored(penalty, _of_the_features(model, scaler)))
        if _rank(sweep[-1]) > _rank(sweep[best]):
            best = len(sweep) - 1
        if len(sweep) - 1 - best >= WITHOUT_GAIN:
            break
    model = LogisticRegression(C=sweep[best]["penalty"], tol=1e-6, max_iter=MOST_ITERATIONS)
    head = _of_the_features(model.fit(scaled, labels, sample_weight=weights), scaler)
    sweep[best] = scored(sweep[best]["penalty"], head)
    return SolvedHead(*head, sweep, best)


def _of_the_features(model: LogisticRegression, scaler: StandardScaler) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias for features as they come: the scaler's part is folded in."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        # Of two classes one is solved for; in a softmax each has its half of the distance.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def _scores(
    prefix: str, features: np.ndarray, labels: np.ndarray, of_class: np.ndarray, head: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """As the Trainer names and weighs them."""
    logits = features @ head[0].T + head[1]
    answers, losses = logits.argmax(axis=1), -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    scores = {f"{prefix}loss": float((of_class[labels] * losses).mean())}
    if prefix:
        scores[f"{prefix}accuracy"] = float((answers == labels).mean())
        scores[f"{prefix}macro_f1"] = macro_f1(answers, labels, len(of_class))
    return scores


def _rank(row: dict[str, float]) -> tuple[float, float]:
    return row["eval_macro_f1"], -row["eval_loss"]


def solve_head(trainer: ImageTrainer, views: int | None) -> None:
    """Feature extraction without epochs: put the solved head into the model, and into the trainer's state what it took.

    It is solved on `views` augmented views of every train photo, or on each photo as it is where views is None. The
    state counts a penalty as a step and a pass over the photos as an epoch. Raises `UsageError` for what a solved head
    cannot follow.
    """
    if trainer.args.label_smoothing_factor:
        raise UsageError(
            "a solved head knows no --label_smoothing_factor; leave it out, or add --augmentation light to train it"
        )
    say("the head alone is solved: learning_rate, weight_decay and num_train_epochs do not matter")
    began = time.perf_counter()
    with trainer.times.spent("features and head"):
        solved = _solve_for(trainer, trainer.train_dataset, views)
    seconds, passes, state = time.perf_counter() - began, views or 1, trainer.state
    state.epoch, state.num_train_epochs = float(passes), passes
    state.log_history += [
        {**row, "epoch": float(passes), "step": step} for step, row in enumerate(solved.sweep, start=1)
    ]
    state.global_step = state.max_steps = len(solved.sweep)
    state.best_global_step = solved.best + 1
    best = solved.sweep[solved.best]
    trainer.log({"eval_macro_f1": best["eval_macro_f1"], "eval_accuracy": best["eval_accuracy"], "loss": best["loss"]})
    photos = passes * len(trainer.train_dataset)
    trainer.log({"train_runtime": seconds, "train_samples_per_second": photos / seconds})


def begin_with_solved_head(trainer: ImageTrainer, train_photos: Dataset) -> None:
    """Put the head that is best for the pretrained features into the model, before anything moves.

    LP-FT (Kumar et al., ICLR 2022): a random head would first pull the body's features out of place. `train_photos` are
    those of training as evaluation sees them.
    """
    # The head is solved for features that are normalised by the pretrained statistics; those of a batch are others.
    freeze_batchnorm_statistics(trainer.model, of_frozen_layers_only=False)
    with trainer.times.spent("features and head"):
        _solve_for(trainer, train_photos, None)


def _solve_for(trainer: ImageTrainer, train_photos: Dataset, views: int | None) -> SolvedHead:
    began = time.perf_counter()
    features = np.concatenate([_features(trainer, train_photos, view) for view in (range(views) if views else [None])])
    validation = _features(trainer, trainer.eval_dataset, None)
    seconds = time.perf_counter() - began
    labels = np.tile(train_photos.labels, views or 1)
    head = find_head(trainer.model)[1]
    of_class = np.ones(head.out_features) if trainer.class_weights is None else trainer.class_weights.double().numpy()
    solved = [
        solve(features, labels, of_class, validation, np.array(trainer.eval_dataset.labels), views or 1)
        if PartialState().is_main_process
        else None
    ]
    # One process solves; sums in another order would give the others other last digits.
    (solved,) = broadcast_object_list(solved) if PartialState().num_processes > 1 else solved
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(solved.weight))
        head.bias.copy_(torch.from_numpy(solved.bias))
    best = solved.sweep[solved.best]
    seen = f"{views} views of {len(train_photos):,} photos" if views else f"{len(train_photos):,} photos"
    say(
        f"head: solved on the features of {seen} ({seconds:.0f} s for them, "
        f"{time.perf_counter() - began - seconds:.1f} s to solve); of {len(solved.sweep)} penalties "
        f"C={best['penalty']:g} has the best validation macro F1, {best['eval_macro_f1']:.3f}"
    )
    return solved


def _features(trainer: ImageTrainer, dataset: Dataset, view: int | None) -> np.ndarray:
    """The head's input (photos, width), float32; the processes share the photos out and know all of them afterwards."""
    with PartialState().split_between_processes(batches_of(dataset, view)) as mine:
        found: list[Any] = [rows.numpy() for rows in activations(trainer, find_head(trainer.model)[1], dataset, mine)]
    return np.concatenate(gather_object(found))
