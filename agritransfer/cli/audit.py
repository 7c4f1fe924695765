"""Check a dataset before training: broken files, copies, leakage, wrong folders, small classes, suspicious labels.

    agritransfer audit photos
    agritransfer audit photos --model_name_or_path facebook/dinov2-small

With a model, it also looks for similar photos that are not copies, and for labels that the features contradict. It
writes audit.json and, with a model, suspects.png beside it. An earlier report is replaced; any other file of that name
is kept, and the command ends before the work. The exit code is 0, or 3 if something must be fixed.
"""

import argparse
import io
import json
from pathlib import Path

from agritransfer.cli.dataset_flags import SOURCE_FLAGS, add_dataset_flags

CROP = 0.9
CROPPED = 64
SHEET = 24
SUSPECTS = "suspects.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    add_dataset_flags(parser, *SOURCE_FLAGS)
    parser.add_argument("--output", type=Path, default=Path("audit.json"), help="the report to write")
    parser.add_argument("--model_name_or_path", help="a pretrained model, to compare the photos by its features")
    parser.add_argument("--model_revision", help="branch, tag or commit of a Hub model")
    parser.add_argument("--image_size", type=int, help="side of the model's input in pixels (default: the model's own)")


def run(arguments: argparse.Namespace) -> int:
    """Check the photos, write the report and print it; returns 0, or 3 if something must be fixed."""
    from agritransfer.data.audit import audit_report, audit_table
    from agritransfer.data.examination import examine
    from agritransfer.data.selection import select_classes
    from agritransfer.data.sources import read_source
    from agritransfer.wording import escaped

    _check_output(arguments.output, arguments.model_name_or_path is not None)
    source = read_source(
        arguments.dataset,
        revision=arguments.dataset_revision,
        image_column=arguments.image_column_name,
        label_column=arguments.label_column_name,
        group_column=arguments.group_column_name,
        group_pattern=arguments.group_pattern,
    )
    source, _ = select_classes(source, arguments.classes)
    examination = examine(source.images, source.photos, arguments.dataset)
    report = audit_report(arguments.dataset, source, examination)
    # With a single class, there is no other label to suggest.
    if arguments.model_name_or_path is not None and len(source.labels) > 1:
        _check_with_model(arguments, source, examination, report)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(audit_table(report))
    print(f"written to {escaped(str(arguments.output))}")
    return 3 if report["faults"] else 0


def _check_output(report: Path, with_model: bool) -> None:
    from agritransfer.cli.outputs import check_report
    from agritransfer.errors import UsageError

    check_report(report, "files_found", "files_used")
    sheet = report.with_name(SUSPECTS)
    # Beside an earlier report, it is that audit's.
    if with_model and sheet.exists() and not report.exists():
        raise UsageError(f"'{sheet}' exists already and would be replaced; move it, or choose another --output")


def _check_with_model(arguments: argparse.Namespace, source, examination, report: dict) -> None:
    """Add similar photos and suspicious labels to the report by a model's features, and draw the suspects."""
    import numpy as np

    from agritransfer.data.deduplication import near_pairs
    from agritransfer.evaluation.frozen_features import out_of_fold_probabilities
    from agritransfer.evaluation.inference import predict
    from agritransfer.evaluation.label_errors import suspected_mislabels
    from agritransfer.evaluation.plots import draw_gallery
    from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset
    from agritransfer.models.loading import load_pretrained, load_processor
    from agritransfer.wording import counted

    processor = load_processor(arguments.model_name_or_path, arguments.model_revision, arguments.image_size)
    image_size = processor.image_size
    model = load_pretrained(arguments.model_name_or_path, arguments.model_revision, source.labels, image_size)
    whole = [place for place, inspection in enumerate(examination.inspections) if not inspection.reason]
    photos = [examination.photos[place] for place in whole]
    labels = np.array([source.labels.index(photo.label) for photo in photos])
    groups = _groups_of(examination, whole)
    rows, files = [photo.row for photo in photos], [photo.file for photo in photos]
    dataset = PhotoDataset(source.images, rows, labels.tolist(), files, EvaluationPixels(processor))
    _, features = predict(model, dataset, batch_size=64)
    alike, found = near_pairs(features, _similarity_of_crops(model, processor, source.images, photos, features), groups)
    report["near"] = [
        {"files": [photos[a].file, photos[b].file], "similarity": round(similarity, 4)} for a, b, similarity in alike
    ]
    if found > len(alike):
        report["warnings"].append(f"{found:,} pairs of similar photos; the {len(alike):,} most similar are listed")
    suspects = suspected_mislabels(out_of_fold_probabilities(features, labels, groups), labels)
    report["suspected_mislabels"] = [
        {
            "file": photos[place].file,
            "label": photos[place].label,
            "suggested": source.labels[suggested],
            "score": round(score, 4),
        }
        for place, suggested, score in suspects
    ]
    pictures = []
    for place, suggested, _ in suspects[:SHEET]:
        picture = _decode(source.images, photos[place])
        picture.thumbnail((320, 320))
        pictures.append((picture, f"{photos[place].file}", f"perhaps {source.labels[suggested]}"))
    title = f"{counted(len(suspects), 'label')} to check, the least probable first"
    draw_gallery(arguments.output.with_name(SUSPECTS), pictures, title)


def _groups_of(examination, whole: list[int]) -> list[str]:
    """A name for each decodable photo that is shared with its copies."""
    name = {place: f"copies {number}" for number, group in enumerate(examination.duplicates) for place in group}
    return [name.get(place) or examination.photos[place].group or f"photo {place}" for place in whole]


def _similarity_of_crops(model, processor, images, photos, features) -> float:
    """The median similarity, to this model, of a photo and its own centre (90 % of each side)."""
    import numpy as np

    from agritransfer.evaluation.inference import predict
    from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset

    chosen = np.random.default_rng(0).permutation(len(photos))[:CROPPED]
    middles = [{"image": {"path": None, "bytes": _middle(_decode(images, photos[place]))}} for place in chosen]
    numbers = range(len(middles))
    files = [photos[place].file for place in chosen]
    dataset = PhotoDataset(middles, numbers, [0] * len(middles), files, EvaluationPixels(processor))
    _, cropped = predict(model, dataset, batch_size=64)
    mean = features.mean(axis=0)
    whole, middle = features[chosen] - mean, cropped - mean
    cosines = (whole * middle).sum(1) / np.maximum(
        np.linalg.norm(whole, axis=1) * np.linalg.norm(middle, axis=1), 1e-12
    )
    return float(np.median(cosines))


def _decode(images, photo):
    from agritransfer.images.decoding import decode_photo

    image = images[photo.row]["image"]
    return decode_photo(image["bytes"] or image["path"])


def _middle(picture) -> bytes:
    """The centre of a picture, 90 % of each side, as PNG."""
    width, height = (round(side * (1 - CROP) / 2) for side in picture.size)
    file = io.BytesIO()
    picture.crop((width, height, picture.width - width, picture.height - height)).save(file, "PNG")
    return file.getvalue()
