"""A CPU that multiplies as a GPU with TF32 does, wherever torch's settings allow TF32."""

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = {functional.conv2d, torch.conv2d}
PRODUCTS = {functional.linear, torch.matmul, torch.Tensor.matmul, torch.bmm, functional.scaled_dot_product_attention}


class TF32(TorchFunctionMode):
    """Inside, the factors of convolutions and products are rounded where the settings of CUDA say "tf32".

    `rounded` and `exact` count the operations of either kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounded = self.exact = 0

    def __torch_function__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if operation in CONVOLUTIONS | PRODUCTS:
            setting = torch.backends.cudnn.conv if operation in CONVOLUTIONS else torch.backends.cuda.matmul
            if setting.fp32_precision == "tf32":
                self.rounded += 1
                args = tuple(rounded(given) if isinstance(given, torch.Tensor) else given for given in args)
            else:
                self.exact += 1
        return operation(*args, **(kwargs or {}))


def rounded(given: torch.Tensor) -> torch.Tensor:
    """float32 numbers with a mantissa of 10 of 23 bits; the gradient passes as if they were not rounded."""
    if given.dtype != torch.float32:
        return given
    bits = given.detach().contiguous().view(torch.int32)
    near = ((bits + 0x1000) & ~0x1FFF).view(torch.float32).view_as(given)
    return given + (near - given).detach() if given.requires_grad else near
