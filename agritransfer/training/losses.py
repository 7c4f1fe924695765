"""Which loss is minimized?"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from agritransfer.errors import UsageError


def classification_loss(class_weights: torch.Tensor | None, label_smoothing: float) -> Callable[..., torch.Tensor]:
    """Cross-entropy for class indices or the soft labels of mixed photos, averaged over one whole optimizer step.

    The labels are not passed to the model, which would treat soft labels as a multi-label task and write that into
    its saved configuration.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        logits = outputs["logits"].float()
        weights = None if class_weights is None else class_weights.to(logits.device)
        total = nn.functional.cross_entropy(
            logits, labels, weight=weights, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def class_weights(kind: Literal["none", "balanced"], counts: dict[str, int] | None) -> torch.Tensor | None:
    """`balanced`: weights of shape (labels,), inverse to the class frequency, 1 on average over the photos.

    `counts` has the number of train photos of each label, in label order. Raises `UsageError` if it is None.
    """
    if kind == "none":
        return None
    if counts is None:
        raise UsageError(
            "the number of photos per class is unknown in these shards; remove --class_weights, or stream parquet"
        )
    photos = torch.tensor(list(counts.values()), dtype=torch.float)
    return photos.sum() / (len(photos) * photos)
