"""Is there, on this machine, what the Trainer's flags ask for?

Asked before any photo is read: the optimizer and its schedule are built once, for a single weight.
"""

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import PreTrainedModel, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from agritransfer.errors import UsageError
from agritransfer.wording import listed

# They replace the parameter groups, or step during the backward pass, where the other checks do not see them.
REFUSED_OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo")
# The options that the optimizers without a package of their own read; any other would be ignored.
OPTIM_ARGS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor"), ()),
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
}


def check_trainer_flags(args: TrainingArguments) -> None:
    """Raise `UsageError` if a flag needs a package that is not installed, or options that do not exist."""
    _check_reporters(args)
    optimizer = _build_optimizer(args)
    _check_schedule(args, optimizer)
    if args.torch_compile:
        _check_compiler(args)


def check_checkpointing(args: TrainingArguments, model: PreTrainedModel) -> None:
    """Raise `UsageError` if activations should be recomputed in a network that cannot do so."""
    if args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UsageError(
            f"--gradient_checkpointing: {type(model).__name__} ({model.config.model_type}) does not support it; remove "
            "it, and save memory with a smaller --per_device_train_batch_size and --gradient_accumulation_steps"
        )


def _check_reporters(args: TrainingArguments) -> None:
    installed = get_available_reporting_integrations()
    for name in args.report_to:
        if name not in installed:
            raise UsageError(
                f"--report_to {name} is unknown, or its package is not installed; install it, or use "
                f"{listed(['none', *installed])}"
            )


def _build_optimizer(args: TrainingArguments) -> torch.optim.Optimizer:
    name = args.optim.value
    if name.startswith(REFUSED_OPTIMIZERS):
        raise UsageError(f"--optim {name} cannot be used here; use adamw_torch_fused, or adafactor to save memory")
    _check_optim_args(name, args.optim_args)
    try:
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args)
        return optimizer([nn.Parameter(torch.zeros(1))], **options)
    except (ImportError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"--optim {name} cannot be used: {reason}; or use one of {', '.join(OPTIM_ARGS)}") from error


def _check_optim_args(name: str, text: str | None) -> None:
    for option in text.replace(" ", "").split(",") if text else ():
        key, _, value = option.partition("=")
        if not (key and value) or "=" in value:
            raise UsageError(f"--optim_args: '{option}' is no option; write them as momentum=0.9,nesterov=true")
        known = OPTIM_ARGS.get(name, (key,))
        if key not in known:
            names = listed(list(known)) if known else "none"
            raise UsageError(f"--optim_args: {key} has no effect on {name}, whose options are: {names}; remove it")


def _check_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    name, steps = args.lr_scheduler_type.value, 100
    try:
        schedule = get_scheduler(name, optimizer, 10, steps, args.lr_scheduler_kwargs)
        for _ in range(steps):
            optimizer.step()
            schedule.step(*([0.0] if isinstance(schedule, ReduceLROnPlateau) or name == "greedy" else []))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(
            f"--lr_scheduler_type {name} cannot be used with these --lr_scheduler_kwargs: {reason}; correct them, or "
            "use cosine"
        ) from error


def _check_compiler(args: TrainingArguments) -> None:
    """Compile one layer with the backend and the mode of the flags."""
    backends = [backend.value.lower() for backend in DynamoBackend if backend is not DynamoBackend.NO]
    backend = args.torch_compile_backend.lower()
    if backend not in backends:
        raise UsageError(f"--torch_compile_backend {backend} is unknown; use one of {', '.join(backends)}")
    layer = nn.Linear(1, 1).to(args.device)
    try:
        torch.compile(layer, backend=backend, mode=args.torch_compile_mode)(torch.zeros(1, 1, device=args.device))
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--torch_compile fails on this machine: {reason}; remove it and its options") from error
