"""Which parts of a photo support a class?

Evidence is a number for each class and cell; a cell is a patch of a transformer or a position of the last feature map
of a convolutional network. It comes from the same forward pass as the logits, without gradients, so that an exported
model can compute it too.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from agritransfer.errors import UsageError
from agritransfer.models.structure import (
    architecture_of,
    find_head,
    is_timm,
    last_attention,
    last_norm,
    logits_and_hidden_state,
    pooled_features,
    watch,
)

EXACT = "exact: the head reads the mean of the cells"
HELD_NORM = "approximation: the norm after pooling, at the spread of the whole photo"
LAST_ATTENTION = "approximation: what each patch writes into the CLS token in the last attention"
CELL_BY_CELL = "approximation: each cell read as if it were the whole photo"


class ExplainedClassifier(nn.Module):
    """A classifier that returns logits (batch, classes), features (batch, width), evidence (batch, classes, n, n).

    The features are the input of the head. The mean of the evidence over the cells plus the bias of the head equals the
    logits: what belongs to no cell is distributed evenly. `method` says how the evidence is computed. It is a module
    because torch.onnx exports modules.
    """

    def __init__(self, model: PreTrainedModel, image_size: int):
        super().__init__()
        self.model, self.head = model, find_head(model)[1]
        self.norm = last_norm(model)
        self.attention = last_attention(model)
        photo = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            _, hidden, seen = self._look(photo)
            self.method = self._find_method(hidden, seen)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, features and evidence of normalized pixels (batch, 3, side, side)."""
        logits, hidden, seen = self._look(pixel_values)
        cells = _cells(hidden)
        evidence = (self._read(cells, hidden, seen) @ self.head.weight.flatten(1).T).transpose(1, 2)
        rest = logits - self.head.bias - evidence.mean(dim=2)
        side = math.isqrt(cells.shape[1])
        return logits, seen["head"][0].flatten(1), (evidence + rest[:, :, None]).unflatten(2, (side, side))

    def _look(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, tuple]]:
        """Logits, the last tokens or feature map, and the inputs and outputs of the layers that are needed."""
        watched = {"head": self.head, "norm": self.norm}
        if self.attention:
            watched |= self.attention.inputs
        with watch(watched) as seen:
            logits, hidden = logits_and_hidden_state(self.model, pixels)
        return logits, hidden, seen

    def _find_method(self, hidden: torch.Tensor, seen: dict[str, tuple]) -> str:
        features, cells = seen["head"][0].flatten(1), _cells(hidden)
        width = cells.shape[-1]
        if self._reads_cls_token(features, hidden, seen):
            return LAST_ATTENTION
        if features.shape == cells[:, 0].shape and torch.allclose(features, cells.mean(dim=1), atol=1e-5):
            return EXACT
        if "norm" in seen and seen["norm"][0].numel() == features.numel() == width:
            return HELD_NORM
        if self._pools_single_cells(features, cells, hidden):
            return CELL_BY_CELL
        raise UsageError(
            f"{architecture_of(self.model)} cannot be exported: its head reads neither the mean of the cells nor a CLS "
            "token of a known attention, so there is no evidence; export another model, such as ViT or ConvNeXt"
        )

    def _reads_cls_token(self, features: torch.Tensor, hidden: torch.Tensor, seen: dict[str, tuple]) -> bool:
        """Whether the head reads the first token, and the last attention gives each token's share of it."""
        # Some networks use the weights of a layer without calling it.
        if self.attention is None or hidden.ndim != 3 or not self.attention.inputs.keys() <= seen.keys():
            return False
        given = [seen[name][1] for name in self.attention.inputs]
        of_tokens = (*hidden.shape[:2], 3 * self.attention.output.in_features)
        return (
            all(part.ndim == 3 for part in given)
            and torch.cat(given, dim=-1).shape == of_tokens
            and torch.allclose(features[:, : hidden.shape[-1]], hidden[:, 0], atol=1e-5)
        )

    def _pools_single_cells(self, features: torch.Tensor, cells: torch.Tensor, hidden: torch.Tensor) -> bool:
        """Whether the head of a timm network can read a single cell."""
        if not is_timm(self.model):
            return False
        try:
            pooled = self._cell_by_cell(cells, hidden)
        except RuntimeError:
            return False
        return pooled.shape[-1] == features.shape[-1] and bool(pooled.isfinite().all())

    def _read(self, cells: torch.Tensor, hidden: torch.Tensor, seen: dict[str, tuple]) -> torch.Tensor:
        """The cells (batch, cells, width) as the head would read them."""
        if self.method == LAST_ATTENTION:
            return self._written_to_cls(cells, seen)
        if self.method == HELD_NORM:
            return _hold_norm(self.norm, cells, seen["norm"][0].flatten(1))
        return cells if self.method == EXACT else self._cell_by_cell(cells, hidden)

    def _written_to_cls(self, cells: torch.Tensor, seen: dict[str, tuple]) -> torch.Tensor:
        heads, given = self.attention.heads, [seen[name][1] for name in self.attention.inputs]
        queries, keys, values = given if len(given) == 3 else given[0].chunk(3, dim=-1)
        queries, keys, values = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (queries, keys, values))
        shares = (queries[:, :, :1] @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])).softmax(dim=-1)
        count = cells.shape[1]
        written = shares[:, :, 0, -count:, None] * values[:, :, -count:]
        written = self.attention.scale(written.transpose(1, 2).flatten(2) @ self.attention.output.weight.T)
        # The evidence is averaged over the cells, while the CLS token is their sum.
        written = count * _hold_norm(self.norm, written, seen["norm"][0][:, 0])
        # DINOv2's head also reads the mean of the patches.
        return torch.cat([written, cells], dim=-1)[..., : self.head.weight.shape[1]]

    def _cell_by_cell(self, cells: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        photos = cells.flatten(0, 1)
        photos = photos[:, None] if hidden.ndim == 3 else photos[:, :, None, None]
        return pooled_features(self.model, photos).unflatten(0, (-1, cells.shape[1]))


def _cells(hidden: torch.Tensor) -> torch.Tensor:
    """The cells (batch, cells, width) of a feature map, or of tokens without the special ones before the grid."""
    if hidden.ndim == 4:
        return hidden.flatten(2).transpose(1, 2)
    return hidden[:, hidden.shape[1] - math.isqrt(hidden.shape[1]) ** 2 :]


def _hold_norm(norm: nn.LayerNorm, parts: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The layer norm of parts (batch, cells, width), with the standard deviation of the whole (batch, width)."""
    spread = (whole.var(dim=-1, correction=0) + norm.eps).sqrt()[:, None, None]
    return (parts - parts.mean(dim=-1, keepdim=True)) / spread * norm.weight
