"""A process imports what it needs, counts its cores, keeps memory in large pages, and ends without a collection."""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from transformers import TrainingArguments

from agritransfer.__main__ import COMMANDS
from agritransfer.errors import UsageError
from agritransfer.runtime.process import (
    available_cores,
    full_precision,
    is_distributed,
    physical_cores,
    prepare_process,
)

AT_THE_END = """
import gc, sys
from agritransfer.runtime.process import begin_process
class Cycle:
    def __init__(self): self.itself = self
    def __del__(self): print("collected at the end", file=sys.stderr)
begin_process()
left = Cycle()
"""


# How often Linux hands out a page for a block of 64 MB that is as large as the one just freed.
TAKEN_AGAIN = """
import resource
from agritransfer.runtime.process import begin_process
def pages(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
begin_process()
block = b"x" * (64 << 20)
del block
before = pages()
block = b"x" * (64 << 20)
print(pages() - before)
"""


# Runs a command and prints the top-level packages that it imported.
IMPORTED = """
import sys
from agritransfer.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("imported:", *{name.split(".")[0] for name in sys.modules})
"""


INSTALLED = packages_distributions().keys()
# What an environment imports by itself, such as `_distutils_hack` of setuptools or the hooks of CUDA's packages.
BY_ITSELF = set(
    subprocess.run(
        [sys.executable, "-c", "import sys; print(*{name.split('.')[0] for name in sys.modules})"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
)
# lazy_loader stands in for what is imported later.
ALWAYS = {"agritransfer", "lazy_loader"} | BY_ITSELF
FOR_PHOTOS = ALWAYS | {"PIL", "_pillow_heif", "numpy", "pillow_heif", "tqdm"}
# A finished and exported run that lies in the repository; its weights do not.
EXPORTED = ROOT / "space/model"


def said_by(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return process.stdout + process.stderr


def test_nothing_is_collected_at_the_end():
    assert said_by(AT_THE_END) == ""
    assert said_by(AT_THE_END.replace("begin_process()", "")) == "collected at the end\n"


@pytest.mark.parametrize(("told", "used"), [({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")])
def test_large_pages_are_asked_for_unless_the_user_decided(told, used):
    code = "import os; from agritransfer.runtime.process import begin_process; begin_process()"
    assert said_by(code + "; print(os.environ['THP_MEM_ALLOC_ENABLE'])", **told) == f"{used}\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_freed_memory_is_taken_again_without_a_new_page_unless_the_user_decided():
    assert int(said_by(TAKEN_AGAIN)) < 16
    # A page has 2 MB at most.
    assert int(said_by(TAKEN_AGAIN, MALLOC_MMAP_MAX_="65536")) >= 32


@pytest.mark.skipif(sys.platform != "linux", reason="the system is asked elsewhere")
def test_two_threads_of_a_core_count_once(tmp_path):
    assert physical_cores(tmp_path) == available_cores()
    for number in os.sched_getaffinity(0):
        topology = tmp_path / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text("0-1\n")
    assert physical_cores(tmp_path) == 1


def imported_by(*words: object, **environment: str) -> set[str]:
    """The installed packages that a command imports."""
    command = [sys.executable, "-c", IMPORTED, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:]) & INSTALLED


def test_help_imports_no_library():
    assert len(COMMANDS) >= 7
    for words in (["--help"], *([command, "--help"] for command in COMMANDS)):
        assert imported_by(*words) <= ALWAYS, words


def test_an_audit_of_a_folder_imports_only_what_reads_photos(tmp_path):
    for _cold_then_warm in range(2):
        imported = imported_by(
            "audit", "sample/leaves_field", "--output", tmp_path / "audit.json", HF_DATASETS_CACHE=str(tmp_path)
        )
        assert {"PIL", "numpy"} <= imported <= FOR_PHOTOS
        assert (tmp_path / "audit.json").is_file()


def test_an_exported_run_answers_without_torch(tmp_path):
    photos = ROOT / "sample/leaves_field/rust"
    imported = imported_by("predict", EXPORTED, photos, "--output", tmp_path / "table.csv")
    assert {"PIL", "numpy", "onnxruntime"} <= imported <= FOR_PHOTOS | {"onnxruntime", "safetensors"}
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + len(list(photos.iterdir())) > 10


def importers_of(module: str) -> list[str]:
    """The files of the package that import a module."""
    package = ROOT / "agritransfer"
    statement = re.compile(rf"^ *(import {module}\b|from {module} import)", flags=re.MULTILINE)
    files = sorted(package.rglob("*.py"))
    assert len(files) >= 60
    return [str(file.relative_to(package)) for file in files if statement.search(file.read_text(encoding="utf-8"))]


def test_only_training_imports_evaluate():
    assert importers_of("evaluate") == ["evaluation/trainer_metric.py"]
    assert importers_of("agritransfer.evaluation.trainer_metric") == ["training/run.py", "training/session.py"]
    assert importers_of("agritransfer.training.session") == []


def test_a_launcher_that_starts_several_processes_is_noticed(monkeypatch):
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not is_distributed()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not is_distributed()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert is_distributed()


def test_one_process_that_sees_several_gpus_is_refused_with_the_command_for_all_and_for_one(monkeypatch):
    trainers = SimpleNamespace(n_gpu=4, seed=0)
    launched = "accelerate launch --config_file accelerate_config.yaml --multi_gpu --num_processes 4"
    for argv, command in (
        (["/home/me/train_lora.py", "--output_dir", "runs/my run"], "train_lora.py --output_dir 'runs/my run'"),
        (["agritransfer lora", "--seed", "1"], "-m agritransfer lora --seed 1"),
    ):
        for visible, first in (("2,3,5,7", "2"), (None, "0")):
            monkeypatch.setattr(sys, "argv", argv)
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible) if visible else monkeypatch.delenv(
                "CUDA_VISIBLE_DEVICES", raising=False
            )
            with pytest.raises(UsageError) as caught:
                prepare_process(trainers)
            assert "\n" not in str(caught.value)
            assert "4 GPUs are visible to a single process" in str(caught.value)
            assert f": {launched} {command} -- or use one GPU: CUDA_VISIBLE_DEVICES={first} python {command}" in str(
                caught.value
            )


@pytest.mark.parametrize("script", ["train_finetune.py", "train_lora.py", "train_scratch.py"])
def test_a_script_that_sees_several_gpus_ends_with_2_before_anything_is_read(script, tmp_path, monkeypatch, run_script):
    # As TrainingArguments counts them on a machine with two GPUs.
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    model = () if script == "train_scratch.py" else ("--model_name_or_path", tmp_path / "none")
    flags = ("--dataset_name", tmp_path / "none", *model, "--output_dir", tmp_path / "run")
    code, out, err = run_script(script, *flags)
    assert (code, out) == (2, "") and not (tmp_path / "run").exists()
    assert err.count("\n") == 1
    assert f"--multi_gpu --num_processes 2 {script} --dataset_name {tmp_path}/none" in err


OPERATIONS = (
    *(torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn),
    *(torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn),
)


def precisions() -> list[str]:
    return [operation.fp32_precision for operation in OPERATIONS]


def followers_of_the_general_setting() -> list[bool]:
    """Which operations have no setting of their own; exporting a model gives some of them one."""
    general, torch.backends.fp32_precision = torch.backends.fp32_precision, "ieee"
    try:
        return [precision == "ieee" for precision in precisions()]
    finally:
        torch.backends.fp32_precision = general


@pytest.mark.parametrize(
    "setting", [None, torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.conv]
)
def test_full_precision_allows_no_tf32_and_restores_what_was_set(setting):
    try:
        if setting is not None:
            setting.fp32_precision = "tf32"
        before, followers = precisions(), followers_of_the_general_setting()
        with pytest.raises(ZeroDivisionError), full_precision():
            assert precisions() == ["ieee"] * len(OPERATIONS) and len(OPERATIONS) == 6
            raise ZeroDivisionError
        assert precisions() == before
        assert followers_of_the_general_setting() == followers
    finally:
        for operation in () if setting is None else (setting,):
            operation.fp32_precision = "none"
        torch.backends.fp32_precision = "none"


def test_full_precision_ends_autocast():
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (ones @ ones).dtype == torch.bfloat16
        with full_precision():
            assert (ones @ ones).dtype == torch.float32
        assert (ones @ ones).dtype == torch.bfloat16
