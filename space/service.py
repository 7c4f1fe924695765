"""How is a request answered?

The page and the API call the same functions. Gradio passes photos on undecoded (a stored file or a data: URL), because
its own decoding has no limits and reports nothing useful for broken files.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import gradio as gr

import page
from classifier import Answer, Classifier
from feedback import NONE_OF_THESE, Feedback, NotStored
from guard import MOST_PHOTOS
from photos import Photo, PhotoError

SCHEMA = 1
MOST_ANSWERS = 5


class Service:
    """The answers of one model, identified by `name` and `revision` (a commit on the Hub, or None)."""

    def __init__(self, classifier: Classifier, name: str, revision: str | None, feedback: Feedback | None):
        self.classifier, self.name, self.revision, self.feedback = classifier, name, revision, feedback
        # Evidence that failed the deletion test is not shown.
        self.with_evidence = classifier.evidence["deletion_test"]["passed"]

    def diagnose(self, photo: dict, request: gr.Request) -> dict:
        """Diagnose one photo of a plant and say when the answer should not be trusted.

        Args:
            photo: the photo (JPEG, PNG, WebP, BMP, TIFF or HEIC; at most 12 MB), uploaded or as a data: URL.

        Returns:
            verdict ("answer", "not sure" or "unknown"), sentence, labels with probabilities, advice for a better photo.
        """
        code = visitor_language(request)
        try:
            return self._facts(*self._answer(photo), code)
        except PhotoError as error:
            raise gr.Error(page.problem(error, code), print_exception=False) from error

    def diagnose_batch(self, photos: list, request: gr.Request) -> list:
        """Diagnose up to 50 photos of plants at once.

        Args:
            photos: the photos, each as in diagnose.

        Returns:
            for each photo its file name and the result of diagnose; a broken one has verdict "broken" and a reason.
        """
        code = visitor_language(request)
        try:
            return [self._facts_of_one(photo, code) for photo in _checked(photos)]
        except PhotoError as error:
            raise gr.Error(page.problem(error, code), print_exception=False) from error

    def labels(self) -> list:
        """All labels of the model, each with its crop and condition."""
        return [
            {"label": label, "crop": crop, "condition": condition}
            for label in self.classifier.labels
            for crop, condition in [page.crop_and_condition(label)]
        ]

    def show(self, photo: dict | None, request: gr.Request) -> str:
        """The answer for one photo as HTML."""
        code = visitor_language(request)
        if photo is None:
            return page.waiting_html(code, self.classifier.calibration["threshold"] is not None)
        try:
            answer, read = self._answer(photo)
        except PhotoError as error:
            return page.problem_html(error, code)
        return page.answer_html(answer, read, code, with_evidence=self.with_evidence)

    def show_many(self, photos: list | None, request: gr.Request, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        """The answers for many photos as an HTML table with a CSV download."""
        code = visitor_language(request)
        try:
            rows = [
                self._row(photo, code)
                for photo in progress.tqdm(_checked(photos), unit=page.TRANSLATIONS[code]["progress"])
            ]
        except PhotoError as error:
            return page.problem_html(error, code)
        return page.table_html(rows, code)

    def about(self, request: gr.Request) -> str:
        """The scores of the model and when not to trust it, as HTML."""
        named = f"{self.name}, {self.revision[:7]}" if self.revision else self.name
        return page.about_html(self.classifier.results, named, visitor_language(request))

    def choices(self, request: gr.Request) -> dict:
        """The labels that a visitor can choose as a correction, including none of them."""
        names = {NONE_OF_THESE: page.TRANSLATIONS[visitor_language(request)]["none_of_these"]}
        return gr.update(choices=[(names.get(label, page.label_text(label)), label) for label in self.feedback.choices])

    def correct(self, photo: dict | None, label: str | None, request: gr.Request) -> str:
        """Store a visitor's correction; returns the message for the visitor."""
        code = visitor_language(request)
        texts = page.TRANSLATIONS[code]
        if photo is None or label is None:
            return page.problem_html(PhotoError("error_none" if photo is None else "error_no_label"), code)
        try:
            answer, read = self._answer(photo)
            self.feedback.store(read, answer, label)
        except PhotoError as error:
            return page.problem_html(error, code)
        except NotStored as error:
            # The reason goes to the log, for the owner of the page.
            print(f"feedback not stored in {self.feedback.repo_id}: {error}")
            return page.notice_html(texts["feedback_error"], code)
        return page.notice_html(texts["thanks"], code)

    def _answer(self, photo: dict | None) -> tuple[Answer, Photo]:
        read = self.classifier.read(_source(photo))
        return self.classifier.answer(read), read

    def _facts(self, answer: Answer, photo: Photo, code: str) -> dict[str, Any]:
        answers = []
        for label, chance in list(zip(answer.labels, answer.probabilities, strict=True))[:MOST_ANSWERS]:
            crop, condition = page.crop_and_condition(label)
            answers.append({"label": label, "crop": crop, "condition": condition, "probability": round(chance, 4)})
        return {
            "schema": SCHEMA,
            "verdict": answer.verdict,
            "sentence": page.sentence(answer, code),
            "answers": answers,
            "advice": page.advice_sentences(answer, photo, code),
            "model": {"name": self.name, "revision": self.revision},
        }

    def _facts_of_one(self, photo: dict, code: str) -> dict[str, Any]:
        try:
            return {"file": _name(photo), **self._facts(*self._answer(photo), code)}
        except PhotoError as error:
            return {"file": _name(photo), "schema": SCHEMA, "verdict": "broken", "reason": page.problem(error, code)}

    def _row(self, photo: dict, code: str) -> dict[str, Any]:
        row = {"file": _name(photo), "first": "", "chance": None, "thumbnail": ""}
        try:
            answer, read = self._answer(photo)
        except PhotoError as error:
            return row | {"verdict": "broken", "note": page.problem(error, code)}
        return row | {
            "verdict": answer.verdict,
            "first": answer.labels[0],
            "chance": answer.probabilities[0],
            "note": " ".join(page.advice_sentences(answer, read, code)),
            "thumbnail": page.thumbnail(read),
        }


def visitor_language(request: gr.Request) -> str:
    """The language of the visitor's browser, or English."""
    return page.language(request.headers.get("accept-language"))


def _checked(photos: list | None) -> list:
    if not photos:
        raise PhotoError("error_none")
    if len(photos) > MOST_PHOTOS:
        raise PhotoError("error_many", most=MOST_PHOTOS)
    return photos


def _source(photo: dict | None) -> Path | bytes:
    """The stored file or the bytes of a Gradio file; Gradio passes on only files that it stored itself."""
    if photo is None:
        raise PhotoError("error_none")
    if photo.get("path"):
        return Path(photo["path"])
    head, comma, content = (photo.get("url") or "").partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise PhotoError("error_upload")
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise PhotoError("error_no_photo") from error


def _name(photo: dict) -> str:
    name = str(photo.get("orig_name") or Path(photo.get("path") or "").name)
    # A name may hold bytes that are not UTF-8, which no answer could contain.
    return name.encode("utf-8", "backslashreplace").decode()
