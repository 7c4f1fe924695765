"""How is a logistic regression fitted to features, and how strong should its penalty be?

Weight W (classes, width) and bias b (classes,) minimize

    sum over photos of w * -log softmax(W z + b)[label] + ||W||^2 / (2 C)

with the features z standardized and w the weight of a photo: the objective of scikit-learn's `LogisticRegression`. With
two classes scikit-learn penalizes a single logit instead, so that its C is twice this one. In the principal components
of the features the curvature is nearly diagonal, so L-BFGS (Liu and Nocedal 1989) needs few iterations; each penalty
starts from the optimum of the next stronger one.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedGroupKFold

# Inverse strengths (C) of the penalty on standardized features, the strongest penalty first.
PENALTIES = tuple(float(f"{strength:.3g}") for strength in np.logspace(-5, 2, 22))
# Stop after this many penalties without a lower loss: weaker ones only overfit, and take longest.
WITHOUT_GAIN = 4
FOLDS = 5
# Photos that a penalty should be judged by; folds of the train photos make up for what validation lacks.
ENOUGH_PHOTOS = 1000
# Components with a smaller share of the largest variance are rounding errors of collinear features.
SMALLEST_VARIANCE = 1e-9
# Gradients at which a fit ends: accurate enough to choose a penalty, and for the head with the chosen one.
PATH_TOLERANCE, FINAL_TOLERANCE = 1e-3, 1e-6
MOST_ITERATIONS = 2000
# Rows that are converted to float64 at once.
BLOCK = 4096


@dataclass(frozen=True)
class Components:
    """Standardization of features by `mean` and `scale` (width,), then rotation to uncorrelated components.

    `directions` (width, rank) are orthonormal, `variances` (rank,) those of the components; all are float64.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    directions: torch.Tensor
    variances: torch.Tensor

    @classmethod
    def of(cls, features: np.ndarray) -> "Components":
        """The components of features (photos, width)."""
        photos, width = features.shape
        mean = sum(block.sum(dim=0) for block in _blocks(features)) / photos
        scale = (sum((block - mean).square().sum(dim=0) for block in _blocks(features)) / photos).sqrt()
        # A constant feature differs from its mean by rounding errors only.
        scale[scale <= 1e-7 * mean.abs()] = torch.inf
        if width <= photos:
            correlation = torch.zeros(width, width, dtype=torch.float64)
            for block in _blocks(features):
                standardized = (block - mean) / scale
                correlation.addmm_(standardized.T, standardized, alpha=1 / photos)
            variances, directions = torch.linalg.eigh(correlation)
        else:
            standardized = (torch.from_numpy(features).double() - mean) / scale
            variances, of_photos = torch.linalg.eigh(standardized @ standardized.T / photos)
            directions = standardized.T @ of_photos / (photos * variances.clamp_min(1e-300)).sqrt()
        kept = variances > SMALLEST_VARIANCE * variances.max()
        return cls(mean, scale, directions[:, kept].contiguous(), variances[kept])

    def scores(self, features: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The components (photos, rank) of features (photos, width)."""
        scores = torch.empty(len(features), len(self.variances), dtype=dtype)
        for rows, block in zip(scores.split(BLOCK), _blocks(features), strict=True):
            rows.copy_(((block - self.mean) / self.scale) @ self.directions)
        return scores

    def head(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight (classes, width) and bias (classes,) for raw features, from coefficients (rank + 1, classes)."""
        coefficients = torch.from_numpy(coefficients)
        weight = (self.directions @ coefficients[:-1]).T / self.scale
        return weight.numpy(), (coefficients[-1] - weight @ self.mean).numpy()


def _blocks(features: np.ndarray) -> Iterator[torch.Tensor]:
    """The features in float64, some rows at a time."""
    return (block.double() for block in torch.from_numpy(features).split(BLOCK))


class Regressions:
    """Logistic regressions on the same components (photos, rank), each with its own weights of the photos.

    They are minimized together, so that each pass over the components serves all of them. `labels` are those of the
    photos, `weights` is (photos, fits). A class that has no weight in a fit has no probability in it. `coefficients`
    (rank + 1, fits, classes), float64, are those of the last fit, the bias in the last row; `iterations` counts the
    steps of all fits.
    """

    def __init__(self, scores: torch.Tensor, variances: torch.Tensor, labels: np.ndarray, weights: np.ndarray):
        self.scores, self.targets = scores, torch.from_numpy(labels)
        self.total = weights.sum(axis=0)
        self.shares = torch.from_numpy(weights / self.total).to(scores.dtype)
        of_classes = np.stack([weights[labels == label].sum(axis=0) for label in range(labels.max() + 1)], axis=1)
        self.occurs = of_classes > 0
        self.barred = torch.where(torch.from_numpy(self.occurs), 0.0, -torch.inf).to(scores.dtype)
        self.variances, self.iterations = variances.numpy(), 0
        self.coefficients = np.zeros((len(self.variances) + 1, *self.occurs.shape))

    def fit(self, penalty: float, tolerance: float = PATH_TOLERANCE) -> None:
        """Minimize for one C, from the coefficients so far, until no gradient is steeper.

        A gradient is per photo, by a coefficient in units of the curvature where all classes are equally likely.
        """
        decay, alike = 1 / (penalty * self.total), 1 / self.occurs.sum(axis=1)
        curvature = np.concatenate([np.outer(self.variances, alike) + decay, alike[None]])
        units = 1 / np.sqrt(curvature)[:, :, None]
        dtype, rows, fits = self.scores.dtype, torch.arange(len(self.scores))[:, None], torch.arange(len(decay))
        decays = torch.from_numpy(decay).to(dtype).expand(len(units), -1)[:, :, None].clone()
        decays[-1] = 0

        def loss_and_gradient(scaled: np.ndarray) -> tuple[float, np.ndarray]:
            coefficients = torch.from_numpy(scaled.reshape(self.coefficients.shape) * units).to(dtype)
            log_shares = self._log_probabilities(self.scores, coefficients)
            loss = -(self.shares * log_shares[rows, fits, self.targets[:, None]]).sum(dtype=torch.float64)
            loss += (decays * coefficients.square()).sum(dtype=torch.float64) / 2
            wrong = log_shares.exp_()
            wrong[rows, fits, self.targets[:, None]] -= 1
            wrong *= self.shares[:, :, None]
            by_components = (self.scores.T @ wrong.flatten(1)).view(-1, *self.occurs.shape)
            gradient = torch.cat([by_components, wrong.sum(dim=0, keepdim=True)]) + decays * coefficients
            return float(loss), (gradient.double().numpy() * units).ravel()

        least = 0 if dtype == torch.float64 else 1e-7
        options = {"maxcor": 20, "gtol": tolerance, "ftol": least, "maxiter": MOST_ITERATIONS}
        start = (self.coefficients / units).ravel()
        found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
        self.iterations += found.nit
        self.coefficients = found.x.reshape(self.coefficients.shape) * units

    def _log_probabilities(self, scores: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Of shape (photos, fits, classes)."""
        logits = torch.addmm(coefficients[-1].flatten(), scores, coefficients[:-1].flatten(1))
        return torch.log_softmax(logits.view(-1, *self.occurs.shape) + self.barred, dim=2)

    def log_probabilities(self, scores: torch.Tensor) -> np.ndarray:
        """Of shape (photos, fits, classes), for components (photos, rank) and the last fit."""
        return self._log_probabilities(scores, torch.from_numpy(self.coefficients).to(scores.dtype)).numpy()


@dataclass(frozen=True)
class Judged:
    """Photos that a penalty is judged by: components (photos, rank), label indices and weights (photos,)."""

    scores: torch.Tensor
    labels: np.ndarray
    weights: np.ndarray


def penalty_path(
    photos: Judged, variances: torch.Tensor, held: np.ndarray, validation: Judged | None = None
) -> Iterator[tuple[float, float, np.ndarray]]:
    """Each C, the mean log loss on photos held out, and the coefficients (rank + 1, classes) of a fit to all photos.

    The strongest penalty comes first; it ends when weaker ones only overfit. `held` (photos, folds) says which photos a
    fold holds out. The loss is over these and, with the fit to all photos, over the validation photos; photos of a
    class that a fold lacks do not count.
    """
    fitted_to = np.column_stack([np.ones(len(held), bool), ~held])
    fits = Regressions(photos.scores, variances, photos.labels, photos.weights[:, None] * fitted_to)
    rows, folds = np.nonzero(held)
    known = fits.occurs[folds + 1, photos.labels[rows]]
    rows, folds = rows[known], folds[known]
    weight = photos.weights[rows].sum() + (validation.weights.sum() if validation else 0)
    best, without_gain = np.inf, 0
    for penalty in PENALTIES:
        fits.fit(penalty)
        log_shares = fits.log_probabilities(photos.scores)[rows, folds + 1, photos.labels[rows]]
        loss = -(photos.weights[rows] * log_shares).sum()
        if validation:
            log_shares = fits.log_probabilities(validation.scores)[:, 0]
            loss -= (validation.weights * log_shares[np.arange(len(log_shares)), validation.labels]).sum()
        loss = float(loss / weight)
        yield penalty, loss, fits.coefficients[:, 0]
        without_gain = 0 if loss < best else without_gain + 1
        best = min(best, loss)
        if without_gain == WITHOUT_GAIN:
            return


def logits_of(scores: torch.Tensor, coefficients: np.ndarray) -> np.ndarray:
    """Logits (photos, classes) for components (photos, rank) and coefficients (rank + 1, classes)."""
    coefficients = torch.from_numpy(coefficients).to(scores.dtype)
    return torch.addmm(coefficients[-1], scores, coefficients[:-1]).numpy()


def held_out(labels: np.ndarray, clusters: np.ndarray, needed: int) -> np.ndarray:
    """Which photos each fold holds out, bool (photos, folds): as many of five folds as hold `needed` photos out.

    No cluster (photos,) is divided. A fold that would leave photos of a single class is left out; there may be none.
    """
    folds = np.zeros((len(labels), 0), bool)
    count = min(FOLDS, len(np.unique(clusters)), int(np.bincount(labels).max()))
    if count < 2 or needed < 1:
        return folds
    with warnings.catch_warnings():
        # A class with fewer photos than folds, which some folds then lack.
        warnings.simplefilter("ignore", UserWarning)
        divided = list(StratifiedGroupKFold(count, shuffle=True, random_state=0).split(labels, labels, clusters))
    for fitted, held in divided:
        if folds.sum() < needed and len(held) and len(set(labels[fitted])) > 1:
            folds = np.column_stack([folds, np.isin(np.arange(len(labels)), held)])
    return folds


def fit_to_convergence(
    components: Components,
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    penalty: float,
    start: np.ndarray | None = None,
) -> Regressions:
    """The regression for one C in float64, from these coefficients (rank + 1, classes) on."""
    scores = components.scores(features, torch.float64)
    fit = Regressions(scores, components.variances, labels, weights[:, None])
    if start is not None:
        fit.coefficients = start[:, None]
    fit.fit(penalty, FINAL_TOLERANCE)
    return fit
