"""The table of docs/backbones.md: its families, its counts, and that every row is what the commands do today."""

import re

import pytest
import timm
from conftest import ROOT
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from benchmarks import backbone_matrix
from benchmarks.backbone_matrix import COLUMNS, FAMILIES, Cell, general, put_photos, row_of, tried, try_family
from benchmarks.tiny_backbones import TIMM, TRANSFORMERS, example_of

PAGE = (ROOT / "docs/backbones.md").read_text(encoding="utf-8")
MATRIX = PAGE[PAGE.index(backbone_matrix.BEGIN) : PAGE.index(backbone_matrix.END)]
LINES = [line.strip("| ").split(" | ") for line in MATRIX.splitlines() if line.startswith("| ")]
ROWS = {family: cells for family, *cells in LINES[1:]}
REASONS = [reason for _, reason in re.findall(r"^(\d+)\. (.+)$", MATRIX, re.MULTILINE)]


def test_every_family_of_transformers_and_forty_of_timm_are_tried():
    assert {*TRANSFORMERS, "timm_wrapper"} == {*MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES}
    modules = {name.split()[0] for name in TIMM}
    assert len(modules) >= 40 and modules <= {*timm.list_modules()}
    assert len(FAMILIES) == len(TRANSFORMERS) + len(TIMM) >= 85


def test_every_example_of_timm_is_pretrained():
    examples = [example for family in FAMILIES if (example := example_of(family)).startswith("timm/")]
    assert len(examples) >= 30 and {example.removeprefix("timm/") for example in examples} <= {*timm.list_pretrained()}


def test_the_table_has_every_family_and_most_cells_work():
    assert [*ROWS] == FAMILIES
    cells = [cell for row in ROWS.values() for cell in row[1:]]
    assert len(cells) == len(FAMILIES) * len(COLUMNS)
    assert cells.count("✓") / len(cells) >= 0.85
    numbers = {int(cell.strip("()")) for cell in cells if cell != "✓"}
    assert numbers == {*range(1, len(REASONS) + 1)} and "failed" not in REASONS


def test_a_cell_works_or_is_refused_in_one_line_and_anything_else_is_a_failure(capsys):
    def refused(message: str, code: int = 2):
        def command() -> int:
            print(message, file=backbone_matrix.sys.stderr)
            return code

        return command

    def broken() -> int:
        raise KeyError("name")

    assert tried("predict", lambda: 0).state == "works"
    one_line = tried("LoRA", refused("train_lora.py: error: no layer in '/tmp/x/backbone'; choose another"))
    assert (one_line.state, one_line.reason) == ("refused", "no layer in backbone; choose another")
    for command in (refused("agritransfer predict: error: a\nb"), refused("nothing"), refused("x", 1), broken):
        assert tried("predict", command).state == "failed"
    assert "KeyError: 'name'" in tried("predict", broken).reason
    assert capsys.readouterr() == ("", "")


def test_equal_reasons_share_a_number():
    reasons: dict[str, int] = {}
    cells = dict.fromkeys(COLUMNS, Cell("works")) | {"LoRA": Cell("refused", "a"), "export": Cell("refused", "b")}
    assert row_of(cells, reasons) == ["✓", "✓", "✓", "(1)", "✓", "✓", "(2)", "✓"]
    assert row_of(cells | {"all": Cell("refused", "b")}, reasons)[0] == "(2)" and reasons == {"a": 1, "b": 2}
    assert general("the model of '/tmp/a/backbone' is gone") == "the model of backbone is gone"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return put_photos(tmp_path_factory.mktemp("matrix") / "photos")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_does_what_its_row_says(family, drawn, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = try_family(family, drawn)
    expected = ["works" if cell == "✓" else REASONS[int(cell.strip("()")) - 1] for cell in ROWS[family][1:]]
    assert [cell.reason or "works" for cell in cells.values()] == expected
