"""README and docs: links and anchors resolve, and every command shown names what exists."""

import ast
import re
import shlex
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT

from agritransfer.__main__ import build_parser
from agritransfer.arguments import (
    DataArguments,
    ModelArguments,
)
from agritransfer.runtime.command_line import FlagParser, parse_args
from agritransfer.strategies import STRATEGIES

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
TRAINING = {
    Path(of.script).stem.removeprefix("train_"): (DataArguments, *[ModelArguments] * of.pretrained, of.arguments)
    for of in STRATEGIES.values()
}
SUBCOMMANDS = build_parser()._subparsers._group_actions[0].choices
LANGUAGES = {"bash", "python", "text"}
# What belongs to other programs; nothing of ours is in such a line.
OTHERS = {"hf", "git", "cd", "curl"}
# A file or folder of the repository, when a command names it.
FOLDERS = "recipes|sample|slurm|space|tests|benchmarks"
OURS = re.compile(rf"({FOLDERS})/|\w+\.(py|yaml|toml|sbatch)$|requirements[\w-]*\.txt$")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Every fenced block as (language, text)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), flags=re.MULTILINE | re.DOTALL)


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """The anchors of the headings, by GitHub's rules."""
    anchors: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_code(page), flags=re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return anchors


def links_of(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", without_code(page))
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)


def commands_of(page: Path) -> list[list[str]]:
    """Every line of the page's bash blocks as words, without comments, prompts, variables and wrappers."""
    commands = []
    for language, block in blocks_of(page):
        if language == "bash":
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            commands += [words for line in lines if (words := unwrapped(shlex.split(line, comments=True)))]
    return commands


def commands_in_scripts() -> list[list[str]]:
    """The commands in the docstrings of the training scripts."""
    commands = []
    for script in sorted(ROOT.glob("train_*.py")):
        story = re.sub(r"\\\n\s*", " ", ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))))
        commands += [shlex.split(line) for line in story.splitlines() if re.match(r" +(python|accelerate) ", line)]
    return commands


def unwrapped(words: list[str]) -> list[str]:
    """The words from the program on: without variables, `taskset`, `uv run`, `uvx` and the folder of a `.venv`."""
    words = [re.sub(r"^\w+=\$\(", "", words[0]), *words[1:]] if words else words
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if words[:2] == ["taskset", "-c"]:
        words = words[3:]
    if words[:2] == ["uv", "run"]:
        words = words[2:]
    elif words[:2] == ["uvx", "--from"]:
        assert words[2].startswith("git+https://"), words
        words = words[3:]
    if words:
        words = [
            re.sub(r"^(\.venv/bin/|py$|python3$)", lambda m: "" if "/" in m[0] else "python", words[0]),
            *words[1:],
        ]
    return words


def check_training(name: str, flags: list[str]) -> None:
    if not {"--help", "--help_all"} & set(flags):
        parse_args(TRAINING[name], "", [*flags, "--use_cpu"])


def check_subcommand(words: list[str]) -> None:
    if words[0] in TRAINING:
        assert words[0] in SUBCOMMANDS
        check_training(words[0], words[1:])
    elif "--help" not in words:
        assert words[0] in SUBCOMMANDS, words
        _, others = build_parser().parse_known_args(words)
        assert not others or words[0] in ("train", "compare"), others
        # What they hand on belongs to the training scripts.
        assert {word for word in others if word.startswith("--")} <= known_flags()


def check_script(words: list[str]) -> None:
    """A Python file of the repository and its flags."""
    script = Path(words[0])
    assert (ROOT / script).is_file(), words
    if script.stem.removeprefix("train_") in TRAINING:
        check_training(script.stem.removeprefix("train_"), words[1:])
    else:
        flags = {word for word in words[1:] if word.startswith("--")}
        assert flags <= flags_in(ROOT / script), words


def check_module(words: list[str]) -> None:
    """What follows `python -m`."""
    name, *rest = words
    if name == "agritransfer":
        check_subcommand(rest)
    elif name == "pip":
        check_pip(rest)
    elif name.split(".")[0] == "benchmarks":
        files = [ROOT / f"{name.replace('.', '/')}.py", ROOT / f"{name.replace('.', '/')}/__main__.py"]
        assert any(file.is_file() for file in files), words
        known = set().union(*(flags_in(file) for file in [*files, *shared_benchmark_files()] if file.is_file()))
        assert {word for word in rest if word.startswith("--")} <= known | {"--help"}, words
    else:
        assert name in ("pytest", "venv"), words


def check_pip(words: list[str]) -> None:
    assert words[0] == "install", words
    for requested in re.findall(r"^\.\[([\w,]+)\]$", "\n".join(words), flags=re.MULTILINE):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert set(requested.split(",")) <= set(project["optional-dependencies"]), words


def check_launch(words: list[str]) -> None:
    """What follows `accelerate launch`."""
    arguments = launch_command_parser().parse_args(words)
    rest = [arguments.training_script, *arguments.training_script_args]
    if arguments.config_file:
        assert (ROOT / arguments.config_file).is_file(), words
    check_module(rest) if arguments.module else check_script(rest)


def check_sbatch(words: list[str]) -> None:
    job = next(place for place, word in enumerate(words) if not word.startswith("-"))
    assert words[job].endswith(".sbatch") and (ROOT / words[job]).is_file(), words
    check_script(words[job + 1 :])


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert len(targets) >= 6 and {word for word in words if "=" not in word} <= targets, words


def check(words: list[str]) -> None:
    """Fail where a command names a file, target, module, subcommand or flag that does not exist."""
    program, *rest = words
    for word in words:
        if OURS.match(word) and not word.startswith("-"):
            assert (ROOT / word).exists(), f"{word} does not exist: {words}"
    if program == "python":
        check_module(rest[1:]) if rest[0] == "-m" else check_script(rest)
    elif program == "agritransfer":
        check_subcommand(rest)
    elif program == "accelerate":
        assert rest[0] == "launch", words
        check_launch(rest[1:])
    elif program == "make":
        check_make(rest)
    elif program == "sbatch":
        check_sbatch(rest)
    elif program == "pip":
        check_pip(rest)
    else:
        assert program in OTHERS or (ROOT / program).is_file(), f"an unknown program: {words}"


def flags_in(path: Path) -> set[str]:
    return set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', path.read_text(encoding="utf-8")))


def shared_benchmark_files() -> list[Path]:
    return [ROOT / "benchmarks/timing.py", ROOT / "benchmarks/runs.py"]


def known_flags() -> set[str]:
    """Every flag of the training scripts, the subcommands, the Space and the benchmarks."""
    from transformers import TrainingArguments

    # One parser each: train_scratch.py has flags of its own with the names of ModelArguments.
    parsers = [FlagParser([*kinds, TrainingArguments]) for kinds in set(TRAINING.values())]
    known = {flag for parser in parsers for flag in parser._option_string_actions}
    known |= {flag for command in SUBCOMMANDS.values() for flag in command._option_string_actions}
    return known.union(*(flags_in(path) for path in (ROOT / "space/app.py", *ROOT.glob("benchmarks/*.py"))))


def test_every_relative_link_and_anchor_resolves():
    checked = anchored = 0
    for page in PAGES:
        for link in links_of(page):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            assert path.exists(), f"{page.name}: {link}"
            if anchor:
                assert anchor in anchors_of(path), f"{page.name}: {link}"
                anchored += 1
            checked += 1
    assert checked >= 100 and anchored >= 60, (checked, anchored)


def test_the_readme_is_short_and_links_every_page():
    assert len(text_of(README).split()) <= 1200
    linked = {(README.parent / link.partition("#")[0]).resolve() for link in links_of(README)}
    assert len(PAGES) >= 11
    assert {page.resolve() for page in PAGES[1:]} <= linked


def test_every_command_shown_names_what_exists():
    programs = Counter()
    shown = {page.name: commands_of(page) for page in PAGES} | {"docstrings": commands_in_scripts()}
    for name, commands in shown.items():
        for words in commands:
            try:
                check(words)
            except SystemExit:
                pytest.fail(f"{name}: {shlex.join(words)} does not parse")
            programs[words[0]] += 1
    assert programs.total() >= 80 and len(shown["docstrings"]) >= 8, programs
    assert programs["python"] >= 40 and programs["agritransfer"] >= 20 and programs["accelerate"] >= 4, programs
    assert programs["make"] >= 3 and programs["sbatch"] >= 3 and programs["pip"] >= 4, programs


def test_every_make_target_and_path_named_in_the_text_exists():
    targets = [target for page in PAGES for target in re.findall(r"`make (\w+)", without_code(page))]
    assert len(targets) >= 8
    check_make(targets)
    paths = [path for page in PAGES for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", without_code(page))]
    assert len(paths) >= 3
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_page_of_benchmarks_names_every_script():
    rows = re.findall(r"^\| (`.+?`) \|", text_of(ROOT / "docs/benchmarks.md"), flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    scripts = {path.stem for path in ROOT.glob("benchmarks/*.py") if "def main(" in path.read_text(encoding="utf-8")}
    assert len(named) >= 14 and named == scripts - {"__main__"}, named ^ scripts


def test_every_block_has_a_known_language_and_every_python_block_is_python():
    blocks = [block for page in PAGES for block in blocks_of(page)]
    assert len(blocks) >= 35
    assert {language for language, _ in blocks} <= LANGUAGES
    fences = sum(len(re.findall(r"^```", text_of(page), flags=re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(blocks)
    for language, block in blocks:
        if language == "python":
            ast.parse(block)


def test_every_flag_named_in_the_text_exists():
    others = {"--config_file", "--multi_gpu", "--num_processes", "--help", "--help_all", "--signals-to-handle"}
    others |= {"--index-url", "--from", "--nodes", "--gpus-per-node", "--cpus-per-task"}
    named = {flag for page in PAGES for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", text_of(page))}
    assert len(named) >= 60, len(named)
    assert named <= known_flags() | others, named - known_flags() - others


def test_every_training_flag_of_ours_is_described():
    ours = {f"--{name}" for kinds in TRAINING.values() for kind in kinds for name in kind.__dataclass_fields__}
    text = "\n".join(text_of(page) for page in PAGES)
    missing = {flag for flag in ours if not re.search(rf"{flag}\b", text)}
    assert len(ours) >= 40 and not missing, missing


def test_a_command_that_names_something_missing_is_caught():
    wrong = """python train_lora.py --dataset_name photos --model_name_or_path m --lora_rank 8
python train_none.py
python train_lora.py --recipe recipes/none.yaml
python -m benchmarks.none
python -m benchmarks.head_only --none 3
python space/app.py --none
agritransfer none photos
agritransfer audit photos --none
agritransfer compare photos --model_name_or_path m --none 3
accelerate launch --config_file none.yaml train_lora.py --recipe recipes/sample_lora.yaml
accelerate launch --none train_lora.py --recipe recipes/sample_lora.yaml
accelerate launch -m agritransfer none photos
sbatch slurm/none.sbatch train_lora.py --recipe recipes/sample_lora.yaml
sbatch slurm/one_gpu.sbatch train_lora.py --none 3
uv run agritransfer audit photos --none
uvx --from git+https://example.org/agritransfer agritransfer none
pip install -r requirements-none.txt
make none
none photos"""
    for line in wrong.splitlines():
        with pytest.raises((AssertionError, SystemExit)):
            check(unwrapped(shlex.split(line)))
    assert len(wrong.splitlines()) >= 19


def test_anchors_follow_the_rules_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b` c?\n\n## Twice\n\n```bash\n# no heading\n```\n\n## Twice\n\n### [Link](x.md): é_1 -- 2\n")
    assert anchors_of(page) == {"a-b-c", "twice", "twice-1", "link-é_1----2"}
