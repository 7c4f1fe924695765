"""The Space in a real browser: Debian's Chromium, through Playwright, as visitors use it."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from spaceapp import SAMPLE, SpaceApp

from page import TRANSLATIONS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium; on Debian: apt-get install chromium"),
]


EXAMPLES = sorted((SAMPLE / "examples").glob("*.jpg"))


# As few of the browser's own calls home as it can be told; a camera that shows a moving test picture.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


FLAGS += ["--disable-component-update", "--disable-sync"]


FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


PATIENCE = 15_000


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Iterator[SpaceApp]:
    app = SpaceApp(tmp_path_factory.mktemp("space"))
    yield app
    app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, space):
    """Open the page as some visitor; gives the page, which notes the addresses that it asks."""
    contexts = []

    def open_page(**visitor: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, "locale": "en-US"} | visitor)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(space.url)
        page.wait_for_selector("#result .waiting")
        return page

    yield open_page
    for context in contexts:
        context.close()


def give(page: Page, photo: Path | dict) -> None:
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector("#result .verdict, #result .problem")


def test_a_photo_gets_its_answer_with_bars_and_a_map_that_can_be_faded(visit, space):
    page = visit()
    expect(page).to_have_title("sample")
    before = page.locator("#photo").bounding_box(), page.locator("#result").bounding_box()
    give(page, EXAMPLES[0])
    expect(page.locator("#result .verdict")).to_contain_text("This looks like")
    expect(page.locator("#result .verdict h2")).to_have_text("angular leaf spot 99%")
    names = page.locator("#result .bars .name")
    assert names.all_text_contents() == ["angular leaf spot", "rust", "mosaic", "healthy"]
    widths = [box["width"] for box in (bar.bounding_box() for bar in page.locator(".bar > span").all())]
    assert widths == sorted(widths, reverse=True) and widths[0] > 20 * widths[1]
    # The map lies over the photo, and the keys of the keyboard move its slider.
    photo, heat = page.locator(".evidence img").first, page.locator(".evidence .heat")
    assert heat.bounding_box() == pytest.approx(photo.bounding_box(), abs=1)
    slider = page.get_by_label(TRANSLATIONS["en"]["evidence_slider"])
    slider.focus()
    slider.press("Home")
    assert heat.evaluate("element => getComputedStyle(element).opacity") == "0"
    slider.press("End")
    assert heat.evaluate("element => getComputedStyle(element).opacity") == "1"
    # Nothing moved when the answer came, and nobody else was asked.
    after = page.locator("#photo").bounding_box(), page.locator("#result").bounding_box()
    assert (before[0], before[1]["x"], before[1]["y"]) == (after[0], after[1]["x"], after[1]["y"])
    assert {url.split("/")[2] for url in page.asked if url.startswith("http")} == {space.url.split("/")[2]}


@pytest.mark.parametrize(
    ("number", "kind", "title"),
    [(0, "answer", "angular leaf spot"), (4, "not-sure", "Not sure"), (5, "unknown", "Unknown")],
)
def test_an_example_shows_each_kind_of_verdict(number, kind, title, visit):
    page = visit()
    page.locator(".gallery-item, .gallery button").nth(number).click()
    verdict = page.locator(f"#result .verdict.{kind}")
    expect(verdict.locator("h2")).to_contain_text(title)
    assert verdict.get_attribute("role") == "status" and verdict.get_attribute("aria-live") == "polite"
    assert page.locator("#result .heat").count() == (0 if kind == "unknown" else 1)


def test_what_is_no_photo_is_told_where_the_answer_would_stand(visit):
    page = visit()
    give(page, {"name": "leaf.jpg", "mimeType": "image/jpeg", "buffer": b"no photo"})
    problem = page.locator("#result .problem")
    expect(problem).to_have_text(TRANSLATIONS["en"]["error_no_photo"])
    assert problem.get_attribute("role") == "alert"
    page.locator("#photo").get_by_label("Remove Image").click()
    page.wait_for_selector("#result .waiting")
    give(page, EXAMPLES[4])
    expect(page.locator("#result .verdict h2")).to_have_text("Not sure")


def test_the_camera_takes_a_photo(visit):
    page = visit(permissions=["camera"])
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    # A picture is there only when the camera has begun.
    page.wait_for_function("document.querySelector('#photo video')?.readyState === 4")
    page.get_by_label("capture photo").click()
    page.wait_for_selector("#result .verdict")


def test_a_photo_can_be_pasted(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    photo = base64.b64encode(EXAMPLES[0].read_bytes()).decode()
    page.evaluate(
        """async (photo) => {
            const picture = await createImageBitmap(await (await fetch(`data:image/jpeg;base64,${photo}`)).blob());
            const canvas = new OffscreenCanvas(picture.width, picture.height);
            canvas.getContext("2d").drawImage(picture, 0, 0);
            await navigator.clipboard.write([new ClipboardItem({"image/png": await canvas.convertToBlob()})]);
        }""",
        photo,
    )
    page.get_by_label("Paste from clipboard").click()
    expect(page.locator("#result .verdict h2")).to_contain_text("angular leaf spot")


def test_many_photos_make_a_table_and_a_csv_file(visit, tmp_path):
    page = visit()
    page.get_by_role("tab", name=TRANSLATIONS["en"]["tab_many"]).click()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    page.set_input_files("#photos input[type=file]", [*EXAMPLES, broken])
    page.get_by_text(broken.name[:6]).first.wait_for()
    page.get_by_role("button", name=TRANSLATIONS["en"]["diagnose_all"]).click()
    page.wait_for_selector("#table table")
    expect(page.locator("#table [role=status]")).to_contain_text(
        "Photos: 7 (4 answered, 1 not sure, 1 unknown, 1 broken)."
    )
    assert page.locator("#table tbody img").count() == 6
    with page.expect_download() as download:
        page.get_by_role("link", name=TRANSLATIONS["en"]["csv"]).click()
    lines = Path(download.value.path()).read_text("utf-8-sig").splitlines()
    assert download.value.suggested_filename == "diagnoses.csv"
    assert lines[0] == "file,verdict,label,probability,note" and len(lines) == 8
    assert lines[1].startswith("1_angular_leaf_spot.jpg,answer,angular_leaf_spot,0.98")
    assert lines[7].startswith('broken.jpg,broken,,,"This file is not a complete photo')


@pytest.mark.parametrize("code", TRANSLATIONS)
def test_the_page_speaks_the_browsers_language(code, visit):
    texts = TRANSLATIONS[code]
    page = visit(locale={"pt": "pt-BR", "es": "es-MX"}.get(code, code))
    for key in ("tab_diagnose", "tab_many", "tab_about"):
        page.get_by_role("tab", name=texts[key], exact=True).first.wait_for(state="attached")
    expect(page.locator("#title h1")).to_have_text(texts["title"])
    expect(page.locator("#result .waiting")).to_have_text(texts["waiting"])
    expect(page.locator("#photo")).to_contain_text(texts["photo"])
    give(page, EXAMPLES[5])
    expect(page.locator("#result .verdict h2")).to_have_text(texts["unknown_title"])
    # The labels stay those of the model.
    assert "mosaic" in page.locator("#result .bars").text_content()


def test_a_phone_shows_the_answer_below_the_photo_and_nothing_is_cut_off(visit):
    page = visit(viewport={"width": 360, "height": 780}, has_touch=True, is_mobile=True, device_scale_factor=2)
    give(page, EXAMPLES[4])
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    photo, result = page.locator("#photo").bounding_box(), page.locator("#result").bounding_box()
    shelf = page.locator(".gallery-item, .gallery button").first.bounding_box()
    assert photo["y"] + photo["height"] <= result["y"] <= photo["y"] + photo["height"] + 60
    assert result["y"] + result["height"] <= shelf["y"]
    for target in (page.get_by_role("tab").first, page.locator("#result input[type=range]")):
        assert target.bounding_box()["height"] >= 44
    assert float(page.locator("#result .bars").evaluate("e => parseFloat(getComputedStyle(e).fontSize)")) >= 14


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(scheme, visit):
    page = visit(color_scheme=scheme)
    give(page, EXAMPLES[0])
    ground, text = page.locator("#result .verdict").evaluate(
        "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e.querySelector('h2')).color]"
    )
    lights = [sum(int(part) for part in colour.strip("rgba()").split(",")[:3]) / 765 for colour in (ground, text)]
    assert (lights[0] < 0.3 and lights[1] > 0.8) if scheme == "dark" else (lights[0] > 0.9 and lights[1] < 0.3)


def test_the_model_tells_its_scores_and_its_limits(visit):
    page = visit()
    page.get_by_role("tab", name=TRANSLATIONS["en"]["tab_about"]).click()
    about = page.locator("#about")
    expect(about).to_contain_text(TRANSLATIONS["en"]["distrust"])
    expect(about.locator("table").first).to_contain_text("0.734 [0.711, 0.757]")
    expect(about.locator("table").nth(1).locator("tbody tr")).to_have_count(4)
