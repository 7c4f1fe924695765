"""What the Space answers is what the run was tested with, without torch and without a word of the package."""

import ast
import csv
import io
import json
import shutil
import string
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT
from mutants import exif_block, tiff_of
from PIL import Image, ImageFilter
from processors import KINDS
from safetensors.numpy import load_file, save
from spaceapp import SAMPLE, encoded

import page
from agritransfer.evaluation.novelty import load_known
from agritransfer.evaluation.selective import verdicts
from agritransfer.images.decoding import decode_photo
from agritransfer.images.preprocessing import describe_processor, pixel_recipe
from classifier import SCHEMA, Answer, Classifier, fastest_session
from guard import names_an_address
from photos import Photo, PhotoError, advice, model_pixels, read_photo, seen_part
from pictures import noise
from service import Service

SPACE = ROOT / "space"


LEAVES = (
    sorted((ROOT / "sample/leaves/test").glob("*/*.jpg"))[::4]
    + sorted((ROOT / "sample/leaves_field").glob("*/*.jpg"))[::4]
)


# The size box of the tiles of a HEIC.
TILE, HUGE_TILE = (b"ispe" + struct.pack(">LLL", 0, side, side) for side in (64, 20_000))
EXAMPLES = sorted((SAMPLE / "examples").glob("*.jpg"))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(SAMPLE)


@pytest.mark.parametrize("kind", KINDS)
def test_its_pixels_are_those_of_the_processor(kind):
    processor = describe_processor(KINDS[kind]())
    recipe, (mean, std) = pixel_recipe(processor), processor.normalization
    # Odd and even sides, so that a centre lies between two pixels.
    for size in ((150, 100), (91, 160), (701, 300), (64, 64), (333, 417)):
        theirs = ((processor.pixels(noise(*size)) - mean) / std).numpy()
        assert np.abs(model_pixels(noise(*size), recipe)[0] - theirs).max() < 1e-5


@pytest.mark.parametrize("file", ["images/recipe_pixels.py", "spreadsheet.py"])
def test_it_makes_pixels_and_tables_with_the_same_files_as_the_package(file):
    assert (SPACE / Path(file).name).read_bytes() == (ROOT / "agritransfer" / file).read_bytes()


def test_it_decodes_as_the_training_does(tmp_path):
    photo = noise(61, 40)
    sixteen = Image.fromarray((np.arange(61 * 40, dtype=np.uint16) * 25).reshape(40, 61))
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "plain.jpg": encoded(photo, "JPEG"),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "palette.png": encoded(photo.quantize(64), "PNG"),
        "clear.png": encoded(clear, "PNG"),
        "sixteen.png": encoded(sixteen, "PNG"),
        "sixteen.tif": encoded(sixteen, "TIFF"),
        "sixteen_big_endian.tif": encoded(Image.fromarray(np.asarray(sixteen).astype(">u2")), "TIFF"),
        "phone.heic": encoded(photo, "HEIF"),
        **{
            f"turned.{kind}": encoded(photo, kind, exif=turned.tobytes())
            for kind in ("JPEG", "PNG", "WEBP", "TIFF", "HEIF")
        },
        "12_bits.tif": tiff_of(np.random.default_rng(0).integers(256, size=(40, 90, 1), dtype=np.uint8), 1, bits=12),
        "negative.tif": tiff_of(np.asarray(sixteen)[:, :, None], 0),
        "damaged.jpg": encoded(photo, "JPEG", exif=exif_block((0x0112, 3, 1, b"\0\6"), (0x011A, 2, 4, b"abc"))),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        for source in (path, content):
            read = read_photo(source)
            assert np.array_equal(np.asarray(read.picture), np.asarray(decode_photo(path))), name
            assert read.shorter_side == 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_large_photo_is_read_at_a_part_of_its_size_and_still_upright(kind):
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = Image.linear_gradient("L").resize((2400, 1600)).convert("RGB")
    content = encoded(picture, kind, exif=turned)
    reduced, whole = read_photo(content, least_side=640), read_photo(content)
    assert reduced.picture.size == (800, 1200) and whole.picture.size == (1600, 2400)
    assert reduced.shorter_side == whole.shorter_side == 1600
    # Dark was above, and is now at the right.
    assert reduced.picture.getpixel((790, 600))[0] < 10 < 240 < reduced.picture.getpixel((10, 600))[0]


def test_its_verdicts_are_those_of_the_run(classifier):
    """The same numbers through the package's own rules."""
    known = load_known(SAMPLE / "known_features.safetensors")
    found = []
    for path in LEAVES:
        photo = classifier.read(path)
        answer = classifier.answer(photo)
        logits, features = classifier.session.run(
            ["logits", "features"], {"pixel_values": model_pixels(photo.picture, classifier.recipe)}
        )
        assert [answer.verdict] == verdicts(logits, features, classifier.calibration, known)
        assert answer.labels[0] == classifier.labels[int(logits.argmax())]
        scaled = logits[0] / classifier.calibration["temperature"]
        assert answer.probabilities == pytest.approx(np.sort(np.exp(scaled) / np.exp(scaled).sum())[::-1], abs=1e-6)
        assert answer.evidence.shape == (12, 12)
        found.append(answer.verdict)
    # The sample model answers a third; a set without one of the three would test nothing.
    assert {verdict: found.count(verdict) > 3 for verdict in ("answer", "not sure", "unknown")} == {
        "answer": True,
        "not sure": True,
        "unknown": True,
    }


def test_the_sample_model_is_small_and_its_examples_show_every_verdict(classifier):
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 6_000_000
    verdict_of = {path.name: classifier.answer(classifier.read(path)).verdict for path in EXAMPLES}
    assert list(verdict_of.values()) == ["answer"] * 4 + ["not sure", "unknown"]
    assert classifier.answer(classifier.read(EXAMPLES[0])).labels[0] == "angular_leaf_spot"


def test_the_faster_of_two_files_is_served(tmp_path, monkeypatch):
    class Slow:
        def __init__(self, path, *_, **__):
            self.path = path

        def get_modelmeta(self):
            return type("Meta", (), {"custom_metadata_map": {"image_size": "8"}})

        def run(self, names, inputs):
            assert inputs["pixel_values"].shape == (1, 3, 8, 8)
            __import__("time").sleep(0.002 if "quantized" in str(self.path) else 0.001)

    monkeypatch.setattr("classifier.InferenceSession", Slow)
    for name in ("model.onnx", "model_quantized.onnx"):
        (tmp_path / name).touch()
    assert fastest_session(tmp_path)[0] == "model.onnx"
    (tmp_path / "model.onnx").rename(tmp_path / "other_quantized.onnx")
    (tmp_path / "model_quantized.onnx").rename(tmp_path / "model.onnx")
    assert fastest_session(tmp_path)[0] == "model.onnx"


def test_each_file_has_its_own_calibration_and_known_photos(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(SAMPLE, tmp_path / "model"))
    model = onnx.load(folder / "onnx/model.onnx")
    (entry,) = [entry for entry in model.metadata_props if entry.key == "calibration"]
    own = json.loads(entry.value) | {"threshold": 0.99, "temperature": 2.0}
    entry.value = json.dumps(own)
    onnx.save(model, folder / "onnx/model_quantized.onnx")
    known = load_file(SAMPLE / "known_features.safetensors")
    (folder / "onnx/known_features_quantized.safetensors").write_bytes(save(known | {"features": -known["features"]}))
    served = {}
    for name in ("model.onnx", "model_quantized.onnx"):
        session = onnxruntime.InferenceSession(folder / "onnx" / name, providers=["CPUExecutionProvider"])
        monkeypatch.setattr("classifier.fastest_session", lambda _, named=(name, session): named)
        served[name] = Classifier(folder)
    full, small = served.values()
    of_run = json.loads((SAMPLE / "results.json").read_text())["calibration"]
    assert full.calibration == of_run == full.results["calibration"]
    assert small.calibration == own == small.results["calibration"] != full.calibration
    assert (small.known["features"] == -full.known["features"]).all()
    photo = full.read(EXAMPLES[0])
    assert (full.answer(photo).verdict, small.answer(photo).verdict) == ("answer", "unknown")


def test_an_export_of_an_earlier_version_is_refused(tmp_path):
    """Its 8-bit file has the thresholds of the other file."""
    folder = Path(shutil.copytree(SAMPLE, tmp_path / "model"))
    # Whichever of the two is the faster one.
    for path in (folder / "onnx").glob("*.onnx"):
        model = onnx.load(path)
        (entry,) = [entry for entry in model.metadata_props if entry.key == "schema"]
        entry.value = "2"
        onnx.save(model, path)
    with pytest.raises(ValueError, match="has another version; export the run again: agritransfer export RUN"):
        Classifier(folder)


@pytest.mark.script
def test_it_knows_nothing_of_the_package_and_needs_no_torch():
    for path in SPACE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"agritransfer", "torch", "transformers"}, path
    code = "import sys, app; sys.exit(bool({'torch', 'transformers', 'agritransfer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=SPACE).returncode == 0


def test_a_map_lies_where_the_model_looked():
    recipe = {"resize": 256, "crop": 224}
    assert seen_part(Image.new("RGB", (512, 512)), recipe) == pytest.approx((1 / 16, 1 / 16, 15 / 16, 15 / 16))
    left, top, right, bottom = seen_part(Image.new("RGB", (1024, 512)), recipe)
    assert (left, right) == pytest.approx((0.5 - 7 / 32, 0.5 + 7 / 32)) and (top, bottom) == pytest.approx(
        (1 / 16, 15 / 16)
    )
    assert seen_part(Image.new("RGB", (9, 5)), {"resize": [8, 8], "crop": None}) == (0, 0, 1, 1)
    # Around a padded photo the model sees more than the photo.
    padded = {"resize": 96, "crop": None, "pad": [127, 127, 127]}
    assert seen_part(Image.new("RGB", (300, 60)), padded) == (0, -2, 1, 3)
    heat = np.asarray(page.heat_picture(np.array([[0.0, 0.0], [0.0, 9.0]])))
    assert heat[250, 250, 3] > 240 and heat[5, 5, 3] < 15
    assert not np.asarray(page.heat_picture(np.ones((3, 3))))[..., 3].any()


def test_what_would_make_a_better_photo_is_measured_on_it():
    def told(picture: Image.Image) -> list[str]:
        return advice(Photo(picture, min(picture.size)), image_size=96)

    with Image.open(EXAMPLES[0]) as photo:
        sharp = photo.convert("RGB")
    assert told(sharp) == []
    assert told(sharp.filter(ImageFilter.GaussianBlur(3))) == ["blurred"]
    assert told(sharp.point(lambda value: value * 0.25)) == ["dark"]
    assert told(sharp.resize((60, 60))) == ["tiny"]
    # A cut-out leaf on black is not dark.
    cut_out = Image.new("RGB", (400, 400))
    cut_out.paste(sharp, (100, 100))
    assert "dark" not in told(cut_out)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"", "error_no_photo"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "error_no_photo"),
        (encoded(noise(40, 40), "JPEG")[:500], "error_no_photo"),
        (encoded(noise(40, 40), "GIF"), "error_no_photo"),
        (tiff_of(np.zeros((8, 8, 4), np.uint8), 2), "error_no_photo"),
        (tiff_of(np.zeros((8, 8, 5), np.uint8), 2, [0, 0]), "error_no_photo"),
        (tiff_of(np.zeros((8, 8, 1), np.float32), 1, kind=3), "error_no_photo"),
        (tiff_of(np.zeros((8, 8, 1), np.int8), 1, kind=2), "error_no_photo"),
        (encoded(Image.new("L", (2, 300)), "PNG"), "error_no_photo"),
        (encoded(noise(96, 80), "HEIF", tile_size=64).replace(TILE, HUGE_TILE), "error_pixels"),
        (encoded(Image.new("L", (6400, 6300)), "PNG"), "error_pixels"),
        (encoded(Image.new("L", (30_000, 30_000)), "PNG"), "error_pixels"),
        (b"\xff\xd8\xff" + bytes(12_000_000), "error_bytes"),
    ],
    ids=[
        "empty",
        "svg",
        "torn",
        "gif",
        "infrared",
        "five",
        "float",
        "signed",
        "strip",
        "tiles",
        "large",
        "bomb",
        "bytes",
    ],
)
def test_what_is_no_photo_is_refused_with_a_reason(content, key, tmp_path):
    path = tmp_path / "photo"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(PhotoError) as error:
            read_photo(source)
        assert error.value.key == key
    with pytest.raises(PhotoError):
        read_photo(tmp_path / "gone.jpg")


@pytest.mark.parametrize("error", [TypeError, AttributeError, MemoryError, ZeroDivisionError, RuntimeError])
def test_whatever_one_photo_raises_the_others_of_a_batch_are_answered(error, classifier, monkeypatch):
    service, calls = Service(classifier, "sample", None, None), []
    answer = classifier.answer

    def fail_once(photo: Photo) -> Answer:
        calls.append(photo)
        if len(calls) == 2:
            raise error("of one photo")
        return answer(photo)

    monkeypatch.setattr(classifier, "answer", fail_once)
    photos = [{"path": str(path), "orig_name": path.name} for path in EXAMPLES[:3]]
    request = SimpleNamespace(headers={})
    assert [row["verdict"] == "broken" for row in service.diagnose_batch(photos, request)] == [False, True, False]


def test_every_language_has_every_text_with_the_same_numbers_in_it():
    assert list(page.TRANSLATIONS) == ["en", "es", "fr", "pt", "sw", "hi"]
    fields = {
        code: {
            key: sorted(name for _, name, _, _ in string.Formatter().parse(text) if name) for key, text in of.items()
        }
        for code, of in page.TRANSLATIONS.items()
    }
    for code, of in fields.items():
        assert of == fields["en"], code
        assert all(page.TRANSLATIONS[code].values())
    used = {key for path in SPACE.glob("*.py") for key in page.TRANSLATIONS["en"] if f"{key}" in path.read_text()}
    built = {key for key in page.TRANSLATIONS["en"] if key.startswith(("advice_", "word_"))}
    assert used | built | {"unknown_title", "not_sure_title"} == page.TRANSLATIONS["en"].keys()


@pytest.mark.parametrize(
    ("header", "code"),
    [(None, "en"), ("", "en"), ("sw-KE,sw;q=0.9,en;q=0.8", "sw"), ("de,pt-BR;q=0.5", "pt"), ("ja", "en"), ("HI", "hi")],
)
def test_the_language_is_the_browsers(header, code):
    assert page.language(header) == code


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("Tomato/late_blight", ("Tomato", "late blight")),
        ("Tomato___Late_blight", ("Tomato", "Late blight")),
        ("Pepper,_bell___Bacterial_spot", ("Pepper, bell", "Bacterial spot")),
        ("a/b/c", ("a", "b c")),
        ("angular_leaf_spot", ("", "angular leaf spot")),
    ],
)
def test_crop_and_condition_are_told_apart(label, parts):
    assert page.crop_and_condition(label) == parts


def answer(verdict: str, label: str = "a/b") -> Answer:
    return Answer(verdict, [label, "c"], [0.834, 0.166], np.eye(3), (0.0, 0.0, 1.0, 1.0), [])


def test_a_verdict_is_one_plain_sentence_in_every_language():
    photo = Photo(noise(20, 20), 20)
    for code, texts in page.TRANSLATIONS.items():
        sign = "%" if code == "en" else " %"
        assert page.sentence(answer("answer"), code) == f"{texts['answer']} a: b (83{sign})."
        not_sure, unknown = page.sentence(answer("not sure"), code), page.sentence(answer("unknown"), code)
        assert "a: b" in not_sure and f"83{sign}" in not_sure and f"17{sign}" in not_sure and "a: b" in unknown
        shown = page.answer_html(answer("unknown"), photo, code, with_evidence=True)
        assert "heat" not in shown and texts["unknown_title"] in shown
        assert "heat" in page.answer_html(answer("answer"), photo, code, with_evidence=True)
        assert "heat" not in page.answer_html(answer("answer"), photo, code, with_evidence=False)


def test_nothing_that_comes_from_outside_is_run():
    hostile = "<script>alert(1)</script>"
    row = {"file": f"{hostile}.jpg", "verdict": "answer", "first": hostile, "chance": 0.5, "note": hostile}
    formulas = {"file": "=1+1", "first": "@a", "note": "\tb"}
    table = page.table_html([row | {"thumbnail": ""}, row | formulas | {"thumbnail": ""}], "en")
    shown = page.answer_html(answer("answer", hostile), Photo(noise(20, 20), 20), "en", with_evidence=True)
    for content in (table, shown):
        assert "<script" not in content and "&lt;script" in content
    file = page.base64.b64decode(table.split("data:text/csv;base64,")[1].split('"')[0]).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(file)))
    assert [row["file"] for row in rows] == [f"{hostile}.jpg", "'=1+1"]
    assert (rows[1]["label"], rows[1]["note"]) == ("'@a", "'\tb")
    assert rows[0]["probability"] == "0.5000" and rows[0]["verdict"] == "answer"


def test_the_about_page_tells_both_scores_and_when_not_to_trust_it():
    results = json.loads((SAMPLE / "results.json").read_text())
    shown = page.about_html(results, "user/leaves, abcdef0", "en")
    for number in ("0.734 [0.711, 0.757]", "0.591 [0.557, 0.625]", "28%", "1.8%", "user/leaves, abcdef0"):
        assert number in shown
    assert "with 90% certainty, at most 5% of the answers are wrong" in shown and "angular leaf spot" in shown
    results["calibration"]["threshold"], results["shift"] = None, None
    results["test"]["answered"]["error"] = None
    shown = page.about_html(results, "user/leaves", "en")
    assert "answers “not sure” to every photo" in shown and "field</th>" not in shown


def test_an_address_is_found_wherever_it_stands():
    assert names_an_address(b'{"data": [{"path": "http://127.0.0.1/x"}]}')
    assert names_an_address(b'{"data": [[{"a": [{"path": "FILE:///etc/passwd", "url": null}]}]]}')
    assert not names_an_address(b'{"data": [{"path": "/tmp/gradio/leaf.jpg", "url": "http://here/file=/tmp"}]}')
    assert not names_an_address(b"[" * 100_000) and not names_an_address(b"\xff")


@pytest.mark.script
def test_a_folder_without_a_model_or_of_another_version_is_told_in_one_line(tmp_path):
    for folder in (tmp_path, SAMPLE / "examples"):
        said = subprocess.run(
            [sys.executable, SPACE / "app.py", "--model", folder], capture_output=True, text=True, cwd=tmp_path
        )
        assert said.returncode == 2 and "agritransfer export" in said.stderr.splitlines()[-1]


def test_a_model_of_an_older_version_is_refused(tmp_path):
    shutil.copytree(SAMPLE, tmp_path / "model")
    for path in (tmp_path / "model/onnx").glob("*.onnx"):
        model = onnx.load(path)
        older = {entry.key: entry.value for entry in model.metadata_props} | {"schema": str(SCHEMA - 1)}
        onnx.helper.set_model_props(model, older)
        onnx.save(model, path)
    with pytest.raises(ValueError, match="has another version; export the run again: agritransfer export RUN"):
        Classifier(tmp_path / "model")


def test_the_header_pins_what_the_requirements_ask_for():
    header = Path(SPACE / "README.md").read_text().split("---")[1]
    requirements = (SPACE / "requirements.txt").read_text()
    version = header.split("sdk_version: ")[1].split()[0]
    assert f"gradio[mcp]>={'.'.join(version.split('.')[:2])}" in requirements
    assert "torch" not in requirements.replace("# The Space's own; torch is not among them.", "")
