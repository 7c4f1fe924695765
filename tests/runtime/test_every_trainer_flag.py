"""Every flag of the Trainer, given to the real script with a value that the library allows: it works, or it is refused.

A field that a new version of transformers adds fails the first test until it has its line in the table.
"""

import dataclasses
import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from transformers import TrainingArguments

from agritransfer.runtime import process
from agritransfer.runtime.trainer_flags import REPLACED, USELESS

STEPS = ("--eval_strategy", "steps", "--save_strategy", "steps")
WORKERS = ("--pixel_store", "off", "--dataloader_num_workers", "1")
# A value other than the default, and the flags without which it would have no effect.
WORKING = {
    "output_dir": ("runs/new",),
    "per_device_train_batch_size": ("4",),
    "num_train_epochs": ("0.5",),
    "max_steps": ("1",),
    "learning_rate": ("1e-3",),
    "lr_scheduler_type": ("linear",),
    "lr_scheduler_kwargs": ('{"num_cycles": 1}',),
    "warmup_steps": ("1",),
    "optim": ("sgd",),
    "optim_args": ("momentum=0.9", "--optim", "sgd"),
    "weight_decay": ("0.01",),
    "adam_beta1": ("0.8",),
    "adam_beta2": ("0.99",),
    "adam_epsilon": ("1e-6",),
    "gradient_accumulation_steps": ("2",),
    "average_tokens_across_devices": ("false",),
    "max_grad_norm": ("0.5",),
    "label_smoothing_factor": ("0.1",),
    "bf16": ("true",),
    "tf32": ("false",),
    "activation_checkpointing": ("true",),
    "activation_checkpointing_kwargs": ('{"use_reentrant": false}', "--activation_checkpointing", "true"),
    "gradient_checkpointing": ("true",),
    "gradient_checkpointing_kwargs": ('{"use_reentrant": false}', "--gradient_checkpointing", "true"),
    # Without a C++ compiler, which a machine may lack.
    "torch_compile": ("true", "--torch_compile_backend", "eager"),
    "torch_compile_backend": ("eager",),
    "torch_compile_mode": ("default", "--torch_compile_backend", "eager"),
    "torch_empty_cache_steps": ("1",),
    "auto_find_batch_size": ("true",),
    "logging_strategy": ("no",),
    "logging_steps": ("1", "--logging_strategy", "steps"),
    "logging_first_step": ("true",),
    "log_on_each_node": ("false",),
    "log_level": ("error",),
    "log_level_replica": ("error",),
    "disable_tqdm": ("false",),
    "report_to": ("tensorboard",),
    "run_name": ("first", "--report_to", "tensorboard"),
    "eval_strategy": ("no", "--load_best_model_at_end", "false"),
    "eval_steps": ("1", *STEPS, "--save_steps", "1"),
    "eval_delay": ("1",),
    "per_device_eval_batch_size": ("4",),
    "eval_on_start": ("true",),
    "eval_use_gather_object": ("true",),
    "eval_accumulation_steps": ("1",),
    "save_strategy": ("best",),
    "save_steps": ("1", *STEPS, "--eval_steps", "1"),
    "save_on_each_node": ("true",),
    "save_total_limit": ("2",),
    "load_best_model_at_end": ("false",),
    "metric_for_best_model": ("loss",),
    "greater_is_better": ("true",),
    "full_determinism": ("true",),
    "seed": ("3",),
    "data_seed": ("3",),
    "use_cpu": ("true",),
    "dataloader_drop_last": ("true",),
    "dataloader_num_workers": ("1", "--pixel_store", "off"),
    "dataloader_pin_memory": ("false",),
    "dataloader_persistent_workers": ("true", *WORKERS),
    "dataloader_prefetch_factor": ("2", *WORKERS),
    "dataloader_multiprocessing_context": ("fork", *WORKERS),
    "dataloader_in_order": ("false", *WORKERS),
    "train_sampling_strategy": ("sequential",),
    "debug": ("underflow_overflow",),
    "skip_memory_metrics": ("false",),
}
# Values that are legal for the library, and the beginning of the line with which they are refused.
REFUSED = {
    "fp16": (("true",), "--fp16 has no effect on a CPU; remove it, or use --bf16 true"),
    "push_to_hub": (("true",), "no Hub token found; run `hf auth login` or set HF_TOKEN"),
    **{
        name: (("true" if name == "hub_private_repo" else "end",), f"--{name} has no effect without --push_to_hub")
        for name in ("hub_private_repo", "hub_model_id", "hub_strategy")
    },
    **{
        name: (("word",), f"--{name} has no effect without --report_to trackio")
        for name in ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
    },
    **{
        name: ((value,), f"--{name} has no effect without several processes")
        for name, value in (
            *(
                ("ddp_backend", "gloo"),
                ("ddp_timeout", "60"),
                ("ddp_bucket_cap_mb", "25"),
                ("ddp_static_graph", "true"),
            ),
            *(("ddp_find_unused_parameters", "true"), ("ddp_broadcast_buffers", "true")),
        )
    },
    **{
        name: (("1",), f"--{name} cannot be used here")
        for name in (field.name for field in dataclasses.fields(TrainingArguments))
        if name in REPLACED or name in USELESS
    },
}


def test_every_field_of_the_trainer_is_in_one_table():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(WORKING) | set(REFUSED) == fields
    assert len(WORKING) + len(REFUSED) == len(fields) == 114


def _run(words: list[str], folder: Path) -> None:
    """Run the script in this process, a fork, with what it prints in files."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
    # Not the streams of pytest.
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    process.physical_cores = lambda: 1
    sys.argv = [str(ROOT / "train_finetune.py"), *words]
    os.chdir(folder)
    runpy.run_path(sys.argv[0], run_name="__main__")


def run_script(words: list[str], folder: Path) -> tuple[int, str]:
    """The exit code and what was complained of; a fork, since some flags change the whole process."""
    forked = multiprocessing.get_context("fork").Process(target=_run, args=(words, folder))
    forked.start()
    forked.join(300)
    return forked.exitcode, (folder / "err").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", [*WORKING, *REFUSED])
def test_a_flag_of_the_trainer_works_or_is_refused_in_one_line(name, photos, tiny_vit, tmp_path):
    value, *more = WORKING[name] if name in WORKING else REFUSED[name][0]
    words = [f"--{name}", value, *more]
    rest = {"--dataset_name": photos, "--model_name_or_path": tiny_vit, "--output_dir": "runs/new"}
    rest |= {"--max_steps": 2, "--per_device_train_batch_size": 8, "--use_cpu": "true"}
    if name in ("num_train_epochs", "max_steps"):
        del rest["--max_steps"]
    words += [str(word) for flag, given in rest.items() if flag not in words for word in (flag, given)]
    code, err = run_script(words, tmp_path)
    assert "Traceback" not in err
    if name in WORKING:
        assert code == 0, err
        assert json.loads((tmp_path / "runs/new/status.json").read_text()) == {"state": "done", "exit_code": 0}
        assert json.loads((tmp_path / "runs/new/results.json").read_text())["test"]["n"] > 0
    else:
        line = err.strip().splitlines()[-1]
        assert code == 2 and line.startswith(f"train_finetune.py: error: {REFUSED[name][1]}"), err
        # A token is asked for once the run has its folder.
        assert err.count("error:") == 1 and (name == "push_to_hub" or not (tmp_path / "runs").exists())
