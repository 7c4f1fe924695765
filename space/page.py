"""How is an answer displayed?

All texts are in the visitor's language; labels are those of the model. Text from outside, such as file names, is
escaped.
"""

import base64
import csv
import io
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from classifier import Answer
from photos import Photo, PhotoError
from spreadsheet import guarded

TRANSLATIONS: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "translations.json").read_text(encoding="utf-8")
)
SHOWN_LABELS = 5
SHOWN_SIDE = 720
THUMBNAIL_SIDE = 96
HEAT_SIDE = 256
# From little to much evidence: dark red, orange, yellow.
HEAT_COLORS = np.array([[120, 0, 40], [235, 90, 20], [255, 230, 90]], np.float32)


def language(accept_language: str | None) -> str:
    """The first language of the Accept-Language header that has translations, or English."""
    for wish in (accept_language or "").split(","):
        code = wish.split(";")[0].strip().lower().split("-")[0]
        if code in TRANSLATIONS:
            return code
    return "en"


def crop_and_condition(label: str) -> tuple[str, str]:
    """The crop (or "") and the condition of a label: `Tomato/late_blight`, `Tomato___Late_blight`, `late_blight`."""
    crop, condition = "", label
    for mark in ("/", "___"):
        if mark in label:
            crop, _, condition = label.partition(mark)
            break
    return _words(crop), _words(condition)


def label_text(label: str) -> str:
    """A label as text: `Tomato/late_blight` as "Tomato: late blight"."""
    return ": ".join(filter(None, crop_and_condition(label)))


def _words(name: str) -> str:
    return re.sub(r"[_/\s]+", " ", name).strip()


def percent(share: float, code: str, digits: int = 0) -> str:
    """A share as a percentage; English puts no space before the sign."""
    return f"{100 * share:.{digits}f}{'%' if code == 'en' else ' %'}"


def sentence(answer: Answer, code: str) -> str:
    """The verdict in one sentence."""
    texts = TRANSLATIONS[code]
    first, second = map(label_text, answer.labels[:2])
    chances = [percent(chance, code) for chance in answer.probabilities[:2]]
    if answer.verdict == "answer":
        return f"{texts['answer']} {first} ({chances[0]})."
    if answer.verdict == "unknown":
        return texts["unknown"].format(first=first)
    doubt = texts["not_sure"].format(first=first, second=second, first_chance=chances[0], second_chance=chances[1])
    return f"{texts['not_sure_title']}. {doubt}"


def advice_sentences(answer: Answer, photo: Photo, code: str) -> list[str]:
    """Advice for a better photo."""
    return [TRANSLATIONS[code][f"advice_{found}"].format(side=photo.shorter_side) for found in answer.advice]


def answer_html(answer: Answer, photo: Photo, code: str, *, with_evidence: bool) -> str:
    """The whole answer: verdict, probabilities, advice and evidence on the photo."""
    texts = TRANSLATIONS[code]
    kind = answer.verdict.replace(" ", "-")
    parts = [f'<section class="verdict {kind}" role="status" aria-live="polite" lang="{code}">']
    parts.append(_headline(answer, code))
    parts.append("</section>")
    parts.append(f'<section lang="{code}"><h3>{escape(texts["chances"])}</h3>{_bars(answer, code)}</section>')
    if answer.advice:
        items = "".join(f"<li>{escape(line)}</li>" for line in advice_sentences(answer, photo, code))
        parts.append(
            f'<section class="advice" lang="{code}"><h3>{escape(texts["advice"])}</h3><ul>{items}</ul></section>'
        )
    if with_evidence and answer.verdict != "unknown":
        parts.append(_evidence(answer, photo, code))
    return "".join(parts)


def waiting_html(code: str, is_ever_sure: bool = True) -> str:
    """The placeholder of the answer; a model that is never sure says so before it is asked."""
    told = "" if is_ever_sure else notice_html(TRANSLATIONS[code]["distrust_never_sure"], code)
    return f'{told}<p class="waiting" lang="{code}">{escape(TRANSLATIONS[code]["waiting"])}</p>'


def notice_html(notice: str, code: str) -> str:
    """A message for the visitor."""
    return f'<p class="notice" role="status" lang="{code}">{escape(notice)}</p>'


def problem(error: PhotoError, code: str) -> str:
    """What is wrong with a photo and what to do."""
    return TRANSLATIONS[code][error.key].format(**error.numbers)


def problem_html(error: PhotoError, code: str) -> str:
    """The same in place of the answer."""
    return f'<p class="problem" role="alert" lang="{code}">{escape(problem(error, code))}</p>'


def _headline(answer: Answer, code: str) -> str:
    texts = TRANSLATIONS[code]
    if answer.verdict != "answer":
        title = texts["unknown_title" if answer.verdict == "unknown" else "not_sure_title"]
        words = escape(sentence(answer, code).removeprefix(f"{title}. "))
        # Keep the percent sign with its number.
        return f"<h2>{escape(title)}</h2><p>{words.replace(' %', '&nbsp;%')}</p>"
    crop, condition = crop_and_condition(answer.labels[0])
    named = f'<span class="crop">{escape(crop)}</span>' if crop else ""
    return (
        f"<p>{escape(texts['answer'])}</p><h2>{named}{escape(condition)} "
        f'<span class="chance">{percent(answer.probabilities[0], code)}</span></h2>'
    )


def _bars(answer: Answer, code: str) -> str:
    rows = []
    for label, chance in list(zip(answer.labels, answer.probabilities, strict=True))[:SHOWN_LABELS]:
        rows.append(
            f'<li><span class="name">{escape(label_text(label))}</span>'
            f'<span class="value">{percent(chance, code)}</span>'
            f'<span class="bar" aria-hidden="true"><span style="width:{chance:.1%}"></span></span></li>'
        )
    return f'<ul class="bars">{"".join(rows)}</ul>'


def _evidence(answer: Answer, photo: Photo, code: str) -> str:
    texts = TRANSLATIONS[code]
    title = texts["evidence"].format(first=label_text(answer.labels[0]))
    left, top, right, bottom = answer.seen
    edges = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    place = ";".join(f"{edge}:{share:.1%}" for edge, share in edges.items())
    picture, heat = (
        _data_url(_fitted(photo.picture, SHOWN_SIDE), "JPEG"),
        _data_url(heat_picture(answer.evidence), "PNG"),
    )
    frame, note = "", ""
    if max(left, top) > 0:
        frame, note = " frame", f'<p class="note">{escape(texts["evidence_seen"])}</p>'
    return (
        f'<section lang="{code}"><h3>{escape(title)}</h3><figure class="evidence">'
        f'<img src="{picture}" alt="{escape(texts["photo"])}">'
        f'<img class="heat{frame}" style="{place}" src="{heat}" alt="{escape(title)}"></figure>'
        f'<label class="slider">{escape(texts["evidence_slider"])}<input type="range" min="0" max="100" value="60" '
        "oninput=\"this.closest('section').querySelector('.heat').style.opacity=this.value/100\"></label>"
        f"{note}</section>"
    )


def heat_picture(evidence: np.ndarray) -> Image.Image:
    """Evidence (rows, columns) as color, from transparent (least) to yellow (most)."""
    spread = float(np.ptp(evidence))
    heat = (evidence - evidence.min()) / spread if spread > 0 else np.zeros_like(evidence)
    smooth = Image.fromarray((255 * heat).astype(np.uint8)).resize((HEAT_SIDE, HEAT_SIDE), Image.Resampling.BICUBIC)
    share = np.asarray(smooth, np.float32) / 255
    steps = np.linspace(0, 1, len(HEAT_COLORS))
    colors = [np.interp(share, steps, HEAT_COLORS[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack([*colors, 255 * share**1.5], axis=-1).astype(np.uint8))


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    fitted = picture.copy()
    fitted.thumbnail((side, side))
    return fitted


def _data_url(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(photo: Photo) -> str:
    """A small picture for the table, as a data URL."""
    return _data_url(_fitted(photo.picture, THUMBNAIL_SIDE), "JPEG")


def table_html(rows: list[dict[str, Any]], code: str) -> str:
    """Many answers as a table; a row has `file`, `verdict`, `first`, `chance`, `note` and `thumbnail`."""
    texts = TRANSLATIONS[code]
    counts = {
        verdict.replace(" ", "_"): sum(row["verdict"] == verdict for row in rows)
        for verdict in ("answer", "not sure", "unknown", "broken")
    }
    cells = []
    for row in rows:
        kind = row["verdict"].replace(" ", "-")
        picture = f'<img src="{row["thumbnail"]}" alt="">' if row["thumbnail"] else ""
        word = f'<span class="word {kind}">{escape(texts["word_" + kind.replace("-", "_")])}</span>'
        # The nearest label of an unknown photo is not an answer; only the CSV file contains it.
        known = row["verdict"] in ("answer", "not sure")
        label, chance = (label_text(row["first"]), percent(row["chance"], code)) if known else ("", "")
        name = f"{picture}<span>{escape(row['file'])}</span>"
        cells.append([name, word, escape(label), chance, escape(row["note"])])
    link = f'<a class="download" download="diagnoses.csv" href="{_csv_url(rows)}">{escape(texts["csv"])}</a>'
    summary = escape(texts["summary"].format(count=len(rows), **counts))
    table = _markup_table([texts[name] for name in ("file", "verdict", "first", "chance", "note")], cells)
    return f'<section lang="{code}"><p role="status">{summary} {link}</p>{table}</section>'


def _csv_url(rows: list[dict[str, Any]]) -> str:
    """The table as a data URL, so that no file is stored on the server."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "verdict", "label", "probability", "note"])
    for row in rows:
        chance = "" if row["chance"] is None else f"{row['chance']:.4f}"
        writer.writerow([guarded(row["file"]), row["verdict"], guarded(row["first"]), chance, guarded(row["note"])])
    # The byte order mark tells spreadsheets that the file is UTF-8.
    return f"data:text/csv;base64,{base64.b64encode(text.getvalue().encode('utf-8-sig')).decode()}"


def about_html(results: dict[str, Any], name: str, code: str) -> str:
    """When not to trust the model, and its scores, overall and by class."""
    texts = TRANSLATIONS[code]
    sets = [("set_test", results["test"])] + ([("set_shift", results["shift"])] if results["shift"] else [])
    scores = [
        [texts[key], str(scored["n"]), *(_interval(scored, name) for name in ("accuracy", "macro_f1"))]
        + _answered(scored, code)
        for key, scored in sets
    ]
    classes = [
        [label_text(row["label"]), str(row["n"]), percent(row["recall"], code), percent(row["precision"], code)]
        for row in results["test"]["per_class"]
    ]
    set_names = ("set", "count", "accuracy", "macro_f1", "answered", "wrong")
    items = "".join(f"<li>{escape(line)}</li>" for line in _distrust(results, code))
    return (
        f'<section class="about" lang="{code}"><p>{escape(texts["model"])}: <code>{escape(name)}</code></p>'
        f"<h3>{escape(texts['distrust'])}</h3><ul>{items}</ul>"
        f"<h3>{escape(texts['scores'])}</h3>{_table([texts[key] for key in set_names], scores)}"
        f"<h3>{escape(texts['per_class'])}</h3>"
        f"{_table([texts[key] for key in ('class', 'count', 'recall', 'precision')], classes)}</section>"
    )


def _distrust(results: dict[str, Any], code: str) -> list[str]:
    texts, calibration = TRANSLATIONS[code], results["calibration"]
    labels = ", ".join(map(label_text, results["dataset"]["labels"]))
    lines = [texts["distrust_labels"].format(labels=labels), texts["distrust_field"]]
    if calibration["threshold"] is None:
        lines.append(texts["distrust_never_sure"])
    else:
        threshold, target = percent(calibration["threshold"], code), percent(calibration["target_error"], code)
        lines.append(texts["distrust_target"].format(threshold=threshold, target=target))
    return [*lines, texts["distrust_expert"]]


def _interval(scored: dict[str, Any], name: str) -> str:
    low, high = scored[f"{name}_ci95"]
    return f"{scored[name]:.3f} [{low:.3f}, {high:.3f}]"


def _answered(scored: dict[str, Any], code: str) -> list[str]:
    answered = scored["answered"]
    return [
        percent(answered["coverage"], code),
        "" if answered["error"] is None else percent(answered["error"], code, digits=1),
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return _markup_table(head, [[escape(cell) for cell in row] for row in rows])


def _markup_table(head: list[str], rows: list[list[str]]) -> str:
    """A table of HTML cells that scrolls if it is wider than the screen."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
