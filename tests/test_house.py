"""The rules of the house that a machine can check: the map, the order of imports, three scripts that read alike."""

import ast
import difflib
import re

import pytest
from conftest import ROOT

MODULES = sorted(path.stem for path in (ROOT / "agritransfer").glob("*.py") if not path.stem.startswith("__"))
FILES = [*(ROOT / "agritransfer").glob("[!_]*.py"), *(ROOT / "space").glob("*.py")]
SCRIPTS = ["train_finetune.py", "train_lora.py", "train_scratch.py"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def map_of_the_readme() -> list[str]:
    return re.findall(r"^\| `(\w+)\.py` \|", README, flags=re.MULTILINE)


def test_the_readme_maps_every_file_of_the_package():
    assert sorted(map_of_the_readme()) == MODULES
    assert len(MODULES) >= 10


def test_a_file_imports_only_files_above_it_in_the_map():
    order = map_of_the_readme()
    checked = 0
    for name in order:
        tree = ast.parse((ROOT / f"agritransfer/{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("agritransfer."):
                imported = node.module.split(".")[1]
                assert order.index(imported) < order.index(name), f"{name}.py imports {imported}.py from below"
                checked += 1
    assert checked > 15


def test_no_class_of_ours_inherits_from_one_of_ours_and_nothing_is_probed():
    ours, bases = set(), set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                ours.add(node.name)
                bases |= {base.id for base in node.bases if isinstance(base, ast.Name)}
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("hasattr", "eval", "exec"))
    assert not ours & bases
    assert len(ours) >= 10


def main_of(script: str) -> list[str]:
    text = (ROOT / script).read_text()
    main = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    lines = ast.get_source_segment(text, main).splitlines()
    # The name of the strategy's own arguments is the one word that always differs.
    return [re.sub(r"\b(finetune|lora|scratch)_args\b", "strategy_args", line).strip() for line in lines]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_and_is_only_its_story(script):
    text = (ROOT / script).read_text()
    assert len(text.splitlines()) <= 110
    kinds = [type(node) for node in ast.parse(text).body]
    assert kinds == [ast.Expr, ast.ImportFrom, ast.FunctionDef, ast.If]


@pytest.mark.parametrize("other", SCRIPTS[1:])
def test_the_scripts_differ_only_where_the_strategy_differs(other):
    finetune, others = main_of("train_finetune.py"), main_of(other)
    matcher = difflib.SequenceMatcher(a=finetune, b=others, autojunk=False)
    same = sum(block.size for block in matcher.get_matching_blocks())
    assert same >= 30
    for tag, a, b, c, d in matcher.get_opcodes():
        for line in finetune[a:b] + others[c:d] if tag != "equal" else []:
            allowed = "strategy_args|import|model|processor|image_size|parameter_groups|rate|decay|Strategy|solve"
            assert re.search(allowed, line) or line in (")", "}", "else:"), (
                f"{other} differs in an unexpected line: {line}"
            )


def test_no_file_of_the_project_names_a_token_or_a_path_of_this_machine():
    texts = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("space/**/*.md")]
    for path in [*ROOT.glob("*.py"), *FILES, *texts]:
        assert not re.search(r"hf_[A-Za-z0-9]{20}|/root/|/home/", path.read_text(encoding="utf-8"))
