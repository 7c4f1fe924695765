"""The package: one list of what it needs, and a wheel that works in any folder."""

import ast
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from agritransfer.__main__ import main
from agritransfer.hub.space import SERVED
from agritransfer.strategies import SCRIPTS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Needed, but imported by a library: torch.onnx, the processes of `agritransfer sweep`.
IMPORTED_BY_OTHERS = {"onnxscript", "optuna"}
PRIVATE_NAMES_USED = {"transformers", "accelerate", "peft", "huggingface-hub", "gradio"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {canonical(Requirement(line).name) for line in requirements}


def lines_of(file: str) -> list[str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


distributions = functools.cache(importlib.metadata.packages_distributions)


def imported(path: Path) -> set[str]:
    """The distributions whose modules a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    beside = {other.stem for other in path.parent.glob("*.py")}
    third_party = modules - sys.stdlib_module_names - beside - {"agritransfer"}
    return {canonical(distributions()[module][0]) for module in third_party}


def test_the_requirements_files_and_the_space_ask_for_what_the_package_asks_for():
    assert lines_of("requirements.txt") == ["-e .[export]"]
    assert lines_of("requirements-dev.txt") == ["-e .[dev,export,space]"]
    assert lines_of("space/requirements.txt") == EXTRAS["space"]
    bounds = {}
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        requirement = Requirement(line)
        bounds.setdefault(canonical(requirement.name), set()).add(str(requirement.specifier))
    assert len(bounds) >= 35
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    files = [*(ROOT / "agritransfer").rglob("*.py"), *(ROOT / script for script in SCRIPTS.values())]
    exporting = [path for path in files if path.parent.name == "export"]
    everywhere = set().union(*(imported(path) for path in files if path not in exporting))
    assert len(files) >= 75 and len(exporting) >= 4
    assert everywhere == names(PROJECT["dependencies"]) - IMPORTED_BY_OTHERS
    for path in exporting:
        assert imported(path) <= names(PROJECT["dependencies"] + EXTRAS["export"]), path
    # gradio is built on starlette.
    assert set().union(*map(imported, (ROOT / "space").glob("*.py"))) - {"starlette"} == names(EXTRAS["space"])


def test_libraries_whose_private_names_are_used_stop_at_the_tested_minor_version():
    requirements = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["space"]]
    checked = {canonical(r.name): str(r.specifier) for r in requirements if canonical(r.name) in PRIVATE_NAMES_USED}
    assert checked.keys() == PRIVATE_NAMES_USED
    for name, bounds in checked.items():
        assert re.search(r"<\d+\.[1-9]\d*(,|$)", bounds), f"{name} {bounds}"
        assert Requirement(f"{name}{bounds}").specifier.contains(importlib.metadata.version(name))


def test_help_lists_commands_and_scripts_and_names_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: agritransfer [-h] COMMAND")
    listed = re.findall(r"^    ([a-z-]+)", said, flags=re.MULTILINE)
    assert listed[:3] == list(SCRIPTS) and {"audit", "compare", "publish-dataset"} <= set(listed)


def test_export_without_its_extra_names_the_remedy(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("agritransfer.cli.export.find_spec", lambda name: None)
    assert main(["export", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "export needs onnx and onnxscript; install with: pip install 'agritransfer[export]'" in said


# What follows builds the wheel and works with it in folders that have nothing to do with the checkout.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


class Installed:
    """A new environment that holds the wheel, and for the libraries looks into the environment of these tests."""

    def __init__(self, wheel: Path, folder: Path):
        self.bin, self.elsewhere = folder / "env/bin", folder / "elsewhere"
        self.elsewhere.mkdir()
        venv.create(folder / "env", with_pip=True)
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
        subprocess.run([self.bin / "python", *install], check=True)
        (site,) = folder.glob("env/lib/python*/site-packages")
        # A plain line adds a folder; the .pth files in that folder, such as that of the checkout, are not read.
        libraries = [path for path in sys.path if path.endswith("-packages")]
        (site / "libraries.pth").write_text("\n".join([sysconfig.get_path("purelib"), *libraries]) + "\n")

    def run(self, *words: str | Path) -> str:
        """Run a program of the environment in another folder; gives what it printed."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [self.bin / words[0], *map(str, words[1:])],
            cwd=self.elsewhere,
            env=environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installed:
    installed = Installed(wheel, tmp_path_factory.mktemp("installed"))
    for module in ("agritransfer", "train_lora"):
        where = f"import importlib.util; print(importlib.util.find_spec({module!r}).origin)"
        assert Path(installed.run("python", "-c", where).strip()).is_relative_to(installed.bin.parent)
    return installed


@pytest.mark.slow
def test_the_wheel_holds_package_scripts_and_space_and_nothing_else(wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {file.split("/")[0] for file in files} == {
        *("agritransfer", f"agritransfer-{PROJECT['version']}.dist-info"),
        *SCRIPTS.values(),
    }
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "agritransfer").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    space = {f"agritransfer/hub/space_files/{p.name}" for pattern in SERVED for p in (ROOT / "space").glob(pattern)}
    assert len(package) >= 75 and len(space) == 13
    assert {file for file in files if file.startswith("agritransfer/")} == package | space


@pytest.mark.slow
@pytest.mark.parametrize(
    "start", [("agritransfer", "lora"), ("python", "-m", "agritransfer", "lora"), ("python", "-m", "train_lora")]
)
def test_a_script_answers_in_any_folder(start, installed):
    said = installed.run(*start, "--help")
    assert said.startswith(f"usage: {'train_lora.py' if start[-1] == 'train_lora' else 'agritransfer lora'} [--flag")
    assert "--lora_r" in said


@pytest.mark.slow
def test_the_installed_commands_work_in_any_folder(installed, photos):
    assert "finetune" in installed.run("agritransfer", "--help")
    assert "36" in installed.run("agritransfer", "audit", photos)
    told = "from agritransfer.hub.space import SOURCE; print(*sorted(path.name for path in SOURCE.iterdir()))"
    space = {path.name for pattern in SERVED for path in (ROOT / "space").glob(pattern)}
    assert set(installed.run("python", "-c", told).split()) >= space


@pytest.mark.slow
@pytest.mark.parametrize("module", [("agritransfer", "finetune"), ("train_finetune",)])
def test_accelerate_launches_an_installed_script(module, installed, photos, tiny_vit, tmp_path):
    flags = ["--dataset_name", photos, "--model_name_or_path", tiny_vit, "--num_train_epochs", 1, "--use_cpu"]
    launch = ["python", "-m", "accelerate.commands.launch", "--num_processes", 1, "--cpu", "-m", *module]
    installed.run(*launch, *flags, "--output_dir", tmp_path / "run")
    command = json.loads((tmp_path / "run/results.json").read_text())["command"]
    assert command.startswith("agritransfer finetune --dataset_name" if module[1:] else "python train_finetune.py --")


@pytest.mark.slow
def test_compare_starts_the_installed_scripts(installed, photos, tiny_vit, tmp_path):
    flags = ["--model_name_or_path", tiny_vit, "--strategies", "scratch", "head", "--seeds", 1, "--budget_epochs", 1]
    said = installed.run("agritransfer", "compare", photos, *flags, "--use_cpu", "--output_dir", tmp_path / "compared")
    assert "2/2 head-seed0" in said and (tmp_path / "compared/report.html").is_file()
