"""How is a linear probe fitted on frozen features?

The features do not change, so they are computed once; the head is then a logistic regression, which has a unique
optimum for each penalty. It is fitted directly, without epochs; the penalty is chosen on the validation photos.
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
from agritransfer.training.resume import has_checkpoint
from agritransfer.training.trainer import ImageTrainer

# Inverse penalty strengths on standardized features, strongest penalty first; each fit starts from the previous one.
PENALTIES = tuple(float(f"{strength:.3g}") for strength in np.logspace(-5, 2, 22))
# Stop after this many penalties without gain: weaker ones only overfit, and take longest.
WITHOUT_GAIN = 6
MOST_ITERATIONS = 2000


@dataclass(frozen=True)
class SolvedHead:
    """`weight` (classes, width) and `bias` (classes,), float64, for the best penalty; `sweep` has a row per penalty."""

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
    """Fit a head to features (photos, width) and labels (photos,), each photo weighted by its class.

    With `views` rows per photo, each row counts 1 / views, so that a penalty has the same effect for any number of
    views. The penalty with the highest validation macro F1 is chosen; ties are broken by the lowest log loss.
    """
    scaler = StandardScaler().fit(features.astype(np.float64))
    scaled = scaler.transform(features.astype(np.float64))
    nearly = scaled.astype(np.float32)
    weights = of_class[labels] / views
    # Accurate enough to choose a penalty; the head with the chosen one is then fitted to convergence.
    model = LogisticRegression(tol=1e-4, max_iter=MOST_ITERATIONS, warm_start=True)
    sweep: list[dict[str, float]] = []
    best = 0

    def scored(penalty: float, head: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
        row = {"penalty": penalty, **_scores("", features, labels, of_class, head)}
        return row | _scores("eval_", validation_features, validation_labels, of_class, head)

    for penalty in PENALTIES:
        with warnings.catch_warnings():
            # Convergence is checked below.
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
    """Weight and bias for raw features: the scaler is folded in."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        # With two classes scikit-learn fits one logit; in a softmax each class gets half of its weights.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def _scores(
    prefix: str, features: np.ndarray, labels: np.ndarray, of_class: np.ndarray, head: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Scores with the Trainer's names and weighting."""
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
    features = np.concatenate([_features(trainer, train_photos, view) for view in (range(views) if views else [None])])
    validation = _features(trainer, trainer.eval_dataset, None)
    seconds = time.perf_counter() - began
    labels = np.tile(train_photos.labels, views or 1)
    head = find_head(trainer.model)[1]
    of_class = np.ones(len(head.weight)) if trainer.class_weights is None else trainer.class_weights.double().numpy()
    solved = [
        solve(features, labels, of_class, validation, np.array(trainer.eval_dataset.labels), views or 1)
        if PartialState().is_main_process
        else None
    ]
    # Only one process fits the head; the others could differ in the last digits.
    (solved,) = broadcast_object_list(solved) if PartialState().num_processes > 1 else solved
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(solved.weight).view_as(head.weight))
        head.bias.copy_(torch.from_numpy(solved.bias))
    best = solved.sweep[solved.best]
    seen = f"{len(train_photos):,} photos" + (f", number of views: {views}" if views else "")
    say(
        f"head: fitted on the features of {seen} ({seconds:.0f} s to extract them, "
        f"{time.perf_counter() - began - seconds:.1f} s to fit); of {len(solved.sweep)} penalties, "
        f"C={best['penalty']:g} has the best validation macro F1, {best['eval_macro_f1']:.3f}"
    )
    return solved


def _features(trainer: ImageTrainer, dataset: Dataset, view: int | None) -> np.ndarray:
    """The head's input (photos, width), float32; the photos are split among the processes, the results gathered."""
    with PartialState().split_between_processes(batches_of(dataset, view)) as mine:
        found: list[Any] = [
            rows.flatten(1).numpy() for rows in activations(trainer, find_head(trainer.model)[1], dataset, mine)
        ]
    return np.concatenate(gather_object(found))
