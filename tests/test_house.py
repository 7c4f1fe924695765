"""The rules of the house that a machine can check: the map, the order of imports, three scripts that read alike."""

import ast
import difflib
import importlib
import re
from pathlib import Path

import pytest
from conftest import ROOT

from agritransfer.strategies import SCRIPTS as SCRIPT_OF

PACKAGE = ROOT / "agritransfer"
ROOMS = ["runtime", "images", "data", "models", "evaluation", "training", "hub", "cli"]
FILES = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"] + [*(ROOT / "space").glob("*.py")]
SCRIPTS = sorted(SCRIPT_OF.values())
CODE_MAP = (ROOT / "docs/code_map.md").read_text(encoding="utf-8")


def mapped() -> dict[str, str]:
    """The files of the code map, from top to bottom, as modules such as `data.readers.folder`, with their questions."""
    questions, room = {}, ""
    for line in CODE_MAP.splitlines():
        if heading := re.fullmatch(r"## agritransfer/(?:(\w+)/)?", line):
            room = f"{heading[1]}." if heading[1] else ""
        elif row := re.fullmatch(r"\| `([\w/]+)\.py` \| (.*) \|", line):
            questions[room + row[1].replace("/", ".")] = row[2]
    return questions


def question_of(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0].replace("\n", " ")


def test_the_code_map_names_every_file_of_the_package_with_its_own_question():
    files = {path for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")}
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in files}
    assert mapped() == {name: question_of(path) for name, path in modules.items()}
    assert len(modules) >= 60
    assert re.findall(r"^## agritransfer/(\w+)/$", CODE_MAP, flags=re.MULTILINE) == ROOMS
    for room in ROOMS:
        question = question_of(PACKAGE / room / "__init__.py")
        assert question.endswith("?") and f"## agritransfer/{room}/\n\n{question}\n" in CODE_MAP


def test_a_file_imports_only_files_above_it_in_the_code_map():
    order = list(mapped())
    checked = 0
    for name in order:
        tree = ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("agritransfer"):
                imported = node.module.removeprefix("agritransfer.")
                assert imported in order, f"{name} imports {node.names[0].name} from {node.module}, which is no file"
                assert order.index(imported) < order.index(name), f"{name} imports {imported}, which is below it"
                checked += 1
            assert not isinstance(node, ast.Import) or not node.names[0].name.startswith("agritransfer")
    assert checked >= 200


def test_what_a_room_offers_exists():
    offered = 0
    for room in ROOMS[:-1]:
        module = importlib.import_module(f"agritransfer.{room}")
        for name in module.__all__:
            assert getattr(module, name) is not None
            offered += 1
    assert offered >= 15


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
    return [re.sub(rf"\b({'|'.join(SCRIPT_OF)})_args\b", "strategy_args", line).strip() for line in lines]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_and_is_only_its_story(script):
    text = (ROOT / script).read_text()
    assert len(text.splitlines()) <= 80
    body = ast.parse(text).body
    assert [type(node) for node in body] == [ast.Expr, ast.ImportFrom, ast.ImportFrom, ast.FunctionDef, ast.If]
    assert body[3].end_lineno - body[3].lineno < 50
    rooms, arguments = body[1:3]
    assert rooms.module == "agritransfer" and {name.name for name in rooms.names} <= set(ROOMS)
    assert arguments.module == "agritransfer.arguments"


@pytest.mark.parametrize("other", SCRIPTS[1:])
def test_the_scripts_differ_only_where_the_strategy_differs(other):
    finetune, others = main_of("train_finetune.py"), main_of(other)
    matcher = difflib.SequenceMatcher(a=finetune, b=others, autojunk=False)
    same = sum(block.size for block in matcher.get_matching_blocks())
    assert same >= 22
    for tag, a, b, c, d in matcher.get_opcodes():
        for line in finetune[a:b] + others[c:d] if tag != "equal" else []:
            allowed = (
                r"^def main|start_run|base_model|models\.|model,|_groups|_args\.|image_size=|solve|# Strategy|# Model"
            )
            assert re.search(allowed, line) or line in (")", "else:", "training.train(run, trainer, splits, store)"), (
                f"{other} differs in an unexpected line: {line}"
            )


def test_no_file_of_the_project_names_a_token_or_a_path_of_this_machine():
    texts = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("space/**/*.md")]
    for path in [*ROOT.glob("*.py"), *FILES, *texts]:
        assert not re.search(r"hf_[A-Za-z0-9]{20}|/root/|/home/", path.read_text(encoding="utf-8"))
