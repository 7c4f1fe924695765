"""Serve a model exported by agritransfer: diagnoses of plant photos that say when they are not sure.

    python space/app.py                         # the small sample model in this folder
    python space/app.py --model runs/NAME       # a run after `agritransfer export runs/NAME`
    MODEL_ID=user/name python space/app.py      # a published model; MODEL_REVISION selects the commit

FEEDBACK_REPO=user/name lets visitors send corrections to that private dataset.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Switches off telemetry; Gradio reads this when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# Blocks of this size return to the system after each photo; smaller ones stay with the process.
os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")

import gradio as gr
import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from starlette.middleware import Middleware

from classifier import Classifier
from feedback import Feedback
from guard import Guard
from page import TRANSLATIONS
from photos import MAX_BYTES
from service import Service, visitor_language

HERE = Path(__file__).parent
WANTED = ("onnx/*", "results.json", "known_features.safetensors", "examples/*.jpg")
# Seconds between deletions of old uploads, and the age at which they are deleted.
LOOK_EVERY, KEPT_FOR = 300, 900
MOST_WAITING = 16
# The rear camera of a phone, not mirrored.
CAMERA = gr.WebcamOptions(mirror=False, constraints={"video": {"facingMode": {"ideal": "environment"}}})
# Gradio translates in the browser, but only into languages that it knows itself.
LANGUAGES_NOT_IN_GRADIO = ("sw",)
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}


def main() -> None:
    """Parse the command line, load the model and serve the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of an exported run")
    parser.add_argument("--port", type=int, help="port to serve on; by default the first free one from 7860")
    options = parser.parse_args()
    try:
        folder, name, revision = find_model(options.model)
        classifier = Classifier(folder)
        repo_id = os.environ.get("FEEDBACK_REPO")
        feedback = Feedback(repo_id, name, revision, classifier.labels) if repo_id else None
    except (HfHubHTTPError, httpx2.HTTPError) as error:
        parser.error(f"{str(error).splitlines()[0]}; check MODEL_ID, MODEL_REVISION, FEEDBACK_REPO and HF_TOKEN")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{name}: {len(classifier.labels)} labels, {classifier.name}")
    page = build(Service(classifier, name, revision, feedback), classifier.examples)
    page.launch(server_port=options.port, allowed_paths=classifier.examples, **launch_options())


def find_model(folder: Path | None) -> tuple[Path, str, str | None]:
    """The folder and name of the model, and its commit if it comes from the Hub."""
    if folder is not None:
        return folder, folder.name, None
    model_id = os.environ.get("MODEL_ID")
    if not model_id:
        return HERE / "model", "sample", None
    revision = os.environ.get("MODEL_REVISION")
    served = huggingface_hub.snapshot_download(model_id, revision=revision, allow_patterns=list(WANTED))
    # The folder of a download is named after its commit.
    return Path(served), model_id, Path(served).name


def launch_options() -> dict[str, Any]:
    """The options of `launch`: nothing of a visitor is kept, and the size of uploads is limited."""
    return {
        "max_file_size": MAX_BYTES,
        "run_history": False,
        # An invalid request gets the reason, which contains only what the visitor sent.
        "show_error": True,
        "mcp_server": True,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
        "app_kwargs": {"middleware": [Middleware(Guard)]},
        "i18n": gr.I18n(**TRANSLATIONS),
        "css_paths": HERE / "style.css",
        "theme": gr.themes.Base(primary_hue="green", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    }


def build(service: Service, examples: list[str]) -> gr.Blocks:
    """The page and its API, for one model."""
    text = gr.I18n(**TRANSLATIONS)
    with gr.Blocks(title=service.name, delete_cache=(LOOK_EVERY, KEPT_FOR), analytics_enabled=False) as blocks:
        title = gr.Markdown("# " + text("title"), elem_id="title")
        with gr.Tab(text("tab_diagnose")) as diagnose_tab, gr.Row(equal_height=False, elem_id="diagnose"):
            with gr.Column(min_width=300, elem_id="given"):
                photo = gr.Image(
                    label=text("photo"),
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    webcam_options=CAMERA,
                    buttons=["fullscreen"],
                    height=320,
                    elem_id="photo",
                )
                shelf = gr.Examples(examples, photo, label=text("examples")).dataset if examples else None
                privacy = gr.Markdown(text("privacy"), elem_classes="small")
            with gr.Column(min_width=300):
                result = gr.HTML(elem_id="result", min_height=360)
                correction = _correction(blocks, service, photo, text) if service.feedback is not None else {}
        with gr.Tab(text("tab_many")) as many_tab:
            photos = gr.File(
                label=text("photos"), file_count="multiple", file_types=["image"], height=220, elem_id="photos"
            )
            start = gr.Button(text("diagnose_all"), variant="primary", size="lg")
            table = gr.HTML(elem_id="table", min_height=120)
        with gr.Tab(text("tab_about")) as about_tab:
            about = gr.HTML(elem_id="about")

        photo.change(service.show, photo, result, preprocess=False, api_visibility="private", **ONE_AT_A_TIME)
        start.click(service.show_many, photos, table, preprocess=False, api_visibility="private", **ONE_AT_A_TIME)
        blocks.load(service.show, photo, result, preprocess=False, api_visibility="private")
        blocks.load(service.about, None, about, api_visibility="private")
        _api(service, photo, photos)
        texts = {
            title: ("value", "title"),
            diagnose_tab: ("label", "tab_diagnose"),
            many_tab: ("label", "tab_many"),
            about_tab: ("label", "tab_about"),
            photo: ("label", "photo"),
            photos: ("label", "photos"),
            start: ("value", "diagnose_all"),
            privacy: ("value", "privacy"),
            **({shelf: ("label", "examples")} if shelf else {}),
            **correction,
        }
        blocks.load(_texts_that_gradio_lacks(texts), None, list(texts), api_visibility="private")
    blocks.queue(max_size=MOST_WAITING)
    return blocks


def _texts_that_gradio_lacks(texts: dict[Any, tuple[str, str]]) -> Callable[[gr.Request], list[dict]]:
    """Updates for visitors whose language Gradio does not know, although the page has translations for it."""

    def updates(request: gr.Request) -> list[dict]:
        code = visitor_language(request)
        if code not in LANGUAGES_NOT_IN_GRADIO:
            return [gr.skip() for _ in texts]
        translated = TRANSLATIONS[code]
        translated = translated | {"title": f"# {translated['title']}"}
        return [gr.update(**{name: translated[key]}) for name, key in texts.values()]

    return updates


def _correction(blocks: gr.Blocks, service: Service, photo: gr.Image, text: gr.I18n) -> dict[Any, tuple[str, str]]:
    """The form for corrections; returns its components and their texts."""
    with gr.Accordion(text("wrong_answer"), open=False, elem_id="correction") as part:
        consent = gr.Markdown(text("consent"))
        label = gr.Dropdown(value=None, label=text("it_is"))
        send = gr.Button(text("send"), size="lg")
        told = gr.HTML()
    blocks.load(service.choices, None, label, api_visibility="private")
    send.click(service.correct, [photo, label], told, preprocess=False, api_visibility="private", **ONE_AT_A_TIME)
    return {
        part: ("label", "wrong_answer"),
        consent: ("value", "consent"),
        label: ("label", "it_is"),
        send: ("value", "send"),
    }


def _api(service: Service, photo: gr.Image, photos: gr.File) -> None:
    """The named endpoints, which are also MCP tools; each belongs to an invisible button."""
    one, many, names = (gr.Button(visible=False) for _ in range(3))
    answer, answers, labels = (gr.JSON(visible=False) for _ in range(3))
    one.click(service.diagnose, photo, answer, preprocess=False, api_name="diagnose", **ONE_AT_A_TIME)
    many.click(service.diagnose_batch, photos, answers, preprocess=False, api_name="diagnose_batch", **ONE_AT_A_TIME)
    names.click(service.labels, None, labels, api_name="labels")


if __name__ == "__main__":
    main()
