"""Packages and options that the Trainer's flags need: asked for before any photo is read."""

import pytest
from networks import timm
from small_trainer import arguments, vit
from transformers import TimmWrapperForImageClassification
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from agritransfer.errors import UsageError
from agritransfer.training.run_folder import check_folder, reserve_folder
from agritransfer.training.trainer_checks import OPTIM_ARGS, check_checkpointing, check_trainer_flags

# The options without which a schedule does not start.
NEEDED = {
    "cosine_with_min_lr": {"min_lr": 1e-6},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
}


def refusal(tmp_path, **flags) -> str:
    with pytest.raises(UsageError) as error:
        check_trainer_flags(arguments(tmp_path, **flags))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_every_optimizer_can_be_built_or_is_refused_by_name(tmp_path):
    built, refused = set(), set()
    for optimizer in OptimizerNames:
        try:
            check_trainer_flags(arguments(tmp_path, optim=optimizer.value))
            built.add(optimizer.value)
        except UsageError as error:
            assert str(error).startswith(f"--optim {optimizer.value} cannot be used") and "use " in str(error)
            refused.add(optimizer.value)
    # Others need packages, which may be installed.
    assert built >= set(OPTIM_ARGS) and {"galore_adamw", "apollo_adamw_layerwise", "lomo", "adalomo"} <= refused
    assert len(built | refused) == len(OptimizerNames) >= 40


def test_every_schedule_starts_with_the_options_that_it_needs_and_is_refused_without(tmp_path):
    for schedule in SchedulerType:
        options = NEEDED.get(schedule.value)
        check_trainer_flags(arguments(tmp_path, lr_scheduler_type=schedule.value, lr_scheduler_kwargs=options))
        if options:
            assert "cannot be used with these --lr_scheduler_kwargs" in refusal(tmp_path, lr_scheduler_type=schedule)
    assert len(SchedulerType) >= 12


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"optim_args": "eps=1"}, "eps has no effect on adamw_torch_fused, whose options are: none; remove it"),
        ({"optim": "sgd", "optim_args": "speed=1"}, "whose options are: momentum, dampening and nesterov; remove it"),
        ({"optim": "sgd", "optim_args": "momentum"}, "'momentum' is no option; write them as momentum=0.9"),
        ({"optim": "sgd", "optim_args": "momentum=fast"}, "--optim sgd cannot be used: could not convert string"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}}, "lr_end (1) must be smaller"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "two"}}, "unsupported operand type"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"power": 2}}, "unexpected keyword argument 'power'"),
        ({"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"power": 2}}, "unexpected keyword argument 'power'"),
        ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}}, "division by zero"),
        ({"report_to": "nobody"}, "--report_to nobody is unknown, or its package is not installed; install it, or use"),
        ({"report_to": ["tensorboard", "none"]}, "--report_to none is unknown"),
        ({"torch_compile_backend": "magic"}, "--torch_compile_backend magic is unknown; use one of eager, aot_eager"),
        ({"torch_compile_backend": "no"}, "--torch_compile_backend no is unknown"),
        ({"torch_compile_mode": "magic"}, "--torch_compile fails on this machine: Unrecognized mode=magic"),
    ],
)
def test_what_is_missing_or_unknown_is_refused_in_one_line(flags, words, tmp_path):
    assert words in refusal(tmp_path, **flags)


def test_activations_are_recomputed_only_in_networks_that_can_do_so(tmp_path):
    args = arguments(tmp_path, activation_checkpointing=True)
    check_checkpointing(args, vit())
    other = TimmWrapperForImageClassification(timm("test_efficientnet"))
    check_checkpointing(arguments(tmp_path), other)
    if not other.supports_gradient_checkpointing:
        with pytest.raises(UsageError, match="--gradient_checkpointing: TimmWrapper.* does not support it; remove it"):
            check_checkpointing(args, other)


def test_a_run_goes_only_into_a_folder_of_its_own(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/job-7.log").write_text("")
    refused = {
        "file": "Not a directory",
        "file/run": "Not a directory",
        "x" * 300: "File name too long",
        "mine": "holds README.md, which no run has written and a run would overwrite; choose another folder",
    }
    for name, words in refused.items():
        with pytest.raises(UsageError) as error:
            check_folder(tmp_path / name)
            reserve_folder(tmp_path / name, restart=False)
        assert words in str(error.value) and str(error.value).endswith("folder")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "logs", "new/run", "new/run"):
        check_folder(tmp_path / name)
        reserve_folder(tmp_path / name, restart=False)
        assert (tmp_path / name / "status.json").is_file()
