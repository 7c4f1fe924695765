"""Which of the Trainer's flags cannot be used here, and which of its numbers?"""

from argparse import Namespace
from collections.abc import Callable, Iterable

from agritransfer.errors import UsageError
from agritransfer.ranges import COUNT, SEED, Range
from agritransfer.runtime.process import is_distributed

# Flags of older versions, of other scripts, and of the Trainer, and what does it here.
REPLACED = {
    "overwrite_output_dir": "--restart",
    "warmup_ratio": "--warmup_steps (a value below 1 is a share of all steps: --warmup_steps 0.1)",
    "evaluation_strategy": "--eval_strategy",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "push_to_hub_model_id": "--hub_model_id",
    "no_cuda": "--use_cpu",
    "adafactor": "--optim adafactor",
    "torchdynamo": "--torch_compile_backend",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "train_dir": "--dataset_name FOLDER",
    "validation_dir": "--dataset_name FOLDER (with FOLDER/train and FOLDER/validation)",
    "train_val_split": "--validation_fraction",
    "freeze_backbone": "--train_layers head",
    "do_predict": "agritransfer predict after the run",
    "hub_token": "the environment variable HF_TOKEN (a flag would be saved in the checkpoints)",
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "parallelism_config"),
        "one whole copy of the model per GPU: accelerate launch --multi_gpu",
    ),
}
# Flags that would have no effect, or break a run, and why.
USELESS = {
    **dict.fromkeys(("do_train", "do_eval"), "a run always trains, validates and tests"),
    "use_mps_device": "a GPU is used whenever there is one",
    "save_safetensors": "safetensors is the only format",
    **dict.fromkeys(("group_by_length", "length_column_name"), "all photos have the same length"),
    "remove_unused_columns": "it is always off, since the photo columns are needed",
    "label_names": "the label of a photo is always called labels",
    "logging_nan_inf_filter": "it is always off, so that a loss that is NaN ends the run",
    "resume_from_checkpoint": "the same command resumes from the newest complete checkpoint",
    "restore_callback_states_from_checkpoint": "it is always on, so that early stopping keeps counting after a restart",
    "save_only_model": "the run folder holds the model alone, and checkpoints must be resumable",
    "ignore_data_skip": "a resumed run sees each photo as often as an uninterrupted one",
    "enable_jit_checkpoint": "SIGTERM and SIGUSR1 always save a checkpoint",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "scores are always computed in float32"),
    **dict.fromkeys(
        ("prediction_loss_only", "batch_eval_metrics", "eval_do_concat_batches", "include_for_metrics"),
        "all validation scores are computed from all outputs",
    ),
    **dict.fromkeys(
        ("include_num_input_tokens_seen", "include_tokens_per_second", "neftune_noise_alpha", "use_cache"),
        "it is for models of text",
    ),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), "its kernels are for models of text"),
    "optim_target_modules": "it belongs to optimizers that cannot be used here",
    "accelerator_config": "its defaults are needed to resume a run at the same photo",
    **dict.fromkeys(("hub_revision", "hub_always_push"), "uploads go to the main branch, one after the other"),
    "local_rank": "accelerate launch and torchrun number the processes",
}

# Single values that the Trainer takes and that fail during training.
VALUES = {
    ("train_sampling_strategy", "group_by_length"): "all photos have the same length; use random or sequential",
    ("train_sampling_strategy", "batch_rebalance"): "all photos have the same length; use random or sequential",
    ("debug", "tpu_metrics_debug"): "it needs a TPU; use underflow_overflow",
}

RANGES = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "max_steps"), COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "torch_empty_cache_steps"), COUNT),
    **dict.fromkeys(("save_total_limit", "dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), COUNT),
    **dict.fromkeys(("learning_rate", "num_train_epochs"), Range(above=0)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), Range(above=0)),
    **dict.fromkeys(("weight_decay", "warmup_steps", "adam_epsilon", "max_grad_norm", "eval_delay"), Range(least=0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), Range(least=0, below=1)),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    "dataloader_num_workers": Range(least=0),
}
# Below 1 they are a share of all steps.
STEPS = ("logging_steps", "eval_steps", "save_steps", "warmup_steps")

# Flags that are read only together with others: what they need, and whether it was chosen.
_Chosen = Callable[[Namespace], bool]
NEEDED: dict[tuple[str, ...], tuple[str, _Chosen]] = {
    ("hub_model_id", "hub_private_repo", "hub_strategy"): ("--push_to_hub", lambda chosen: chosen.push_to_hub),
    ("logging_steps",): ("--logging_strategy steps", lambda chosen: chosen.logging_strategy == "steps"),
    ("eval_steps",): ("--eval_strategy steps", lambda chosen: chosen.eval_strategy == "steps"),
    ("save_steps",): ("--save_strategy steps", lambda chosen: chosen.save_strategy == "steps"),
    ("run_name",): ("a program to --report_to", lambda chosen: chosen.report_to not in ("none", ["none"])),
    ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"): (
        "--report_to trackio",
        lambda chosen: "trackio" in chosen.report_to or "all" in chosen.report_to,
    ),
    ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"): (
        "--gradient_checkpointing",
        lambda chosen: chosen.gradient_checkpointing or chosen.activation_checkpointing,
    ),
    ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"): (
        "--dataloader_num_workers",
        lambda chosen: chosen.dataloader_num_workers > 0,
    ),
    ("adam_beta1", "adam_beta2", "adam_epsilon"): (
        "an --optim such as adamw_torch",
        lambda chosen: chosen.optim not in ("sgd", "adagrad", "rmsprop", "adafactor"),
    ),
    ("warmup_steps",): (
        "an --lr_scheduler_type such as cosine",
        lambda chosen: chosen.lr_scheduler_type not in ("constant", "reduce_lr_on_plateau", "greedy"),
    ),
    (
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        *("ddp_backend", "ddp_timeout"),
    ): ("several processes (accelerate launch)", lambda chosen: is_distributed()),
    ("shuffle_buffer",): ("--streaming", lambda chosen: chosen.streaming),
}


def check_usable(given: Iterable[str]) -> None:
    """Raise `UsageError` if one of the flags cannot be used, with the one to use in its place or the reason."""
    for name in given:
        if name in REPLACED:
            raise UsageError(f"--{name} cannot be used here; use {REPLACED[name]}")
        if name in USELESS:
            raise UsageError(f"--{name} cannot be used here: {USELESS[name]}; remove it")


def check_values(given: set[str], chosen: Namespace) -> None:
    """Raise `UsageError` for a value that cannot work, or for a given flag that would be ignored."""
    values = vars(chosen)
    for name in STEPS:
        if name in given and values[name] > 1 and values[name] % 1:
            raise UsageError(f"--{name} {values[name]} is no number of steps; give a whole one, or a share below 1")
    for (name, value), reason in VALUES.items():
        if value in (values[name] if isinstance(values[name], list) else [values[name]]):
            raise UsageError(f"--{name} {value} cannot be used here: {reason}")
    for names, (needed, is_chosen) in NEEDED.items():
        for name in names:
            if name in given and not is_chosen(chosen):
                raise UsageError(f"--{name} has no effect without {needed}; add it or remove --{name}")
