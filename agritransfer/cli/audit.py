"""Look through a set of photos before training: broken, copied, leaking, mis-foldered, too few, perhaps mislabelled.

    python -m agritransfer audit photos
    python -m agritransfer audit photos --model_name_or_path facebook/dinov2-small

With a model it also looks for photos that are alike without being copies, and for labels that its features contradict.
Writes audit.json, and with a model suspects.png beside it. Exit code 0, or 3 where something must be mended.
"""

import argparse
import io
import json
from pathlib import Path

CROP = 0.9
CROPPED = 64
SHEET = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("dataset", help="Hub id or folder, as --dataset_name of the training scripts")
    parser.add_argument("--output", type=Path, default=Path("audit.json"), help="where to write what was found")
    parser.add_argument("--model_name_or_path", help="a pretrained model whose features are compared")
    parser.add_argument("--model_revision", help="branch, tag or commit of a Hub model")
    parser.add_argument("--image_size", type=int, help="side of the model's input in pixels")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    parser.add_argument("--image_column_name", help="column of the photos in a Hub dataset")
    parser.add_argument("--label_column_name", help="column of the labels in a Hub dataset")
    parser.add_argument("--group_column_name", help="column of what must stay in one split, such as the plant")
    parser.add_argument("--group_pattern", help="the same from file names, a regular expression")


def run(arguments: argparse.Namespace) -> int:
    """Audit, print the table, write the report; returns 0, or 3 where something must be mended."""
    from agritransfer.data.audit import audit_report, audit_table, examine
    from agritransfer.data.sources import read_source
    from agritransfer.errors import UsageError

    if not arguments.output.parent.is_dir():
        raise UsageError(f"there is no folder '{arguments.output.parent}' for --output; make it first")
    source = read_source(
        arguments.dataset,
        revision=arguments.dataset_revision,
        image_column=arguments.image_column_name,
        label_column=arguments.label_column_name,
        group_column=arguments.group_column_name,
        group_pattern=arguments.group_pattern,
    )
    examination = examine(source.images, source.photos, arguments.dataset)
    report = audit_report(arguments.dataset, source, examination)
    # One class gives a model nothing to contradict.
    if arguments.model_name_or_path is not None and len(source.labels) > 1:
        _look_with_model(arguments, source, examination, report)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(audit_table(report))
    print(f"written to {arguments.output}")
    return 3 if report["faults"] else 0


def _look_with_model(arguments: argparse.Namespace, source, examination, report: dict) -> None:
    """Add what the features of a pretrained model tell to the report, and draw the sheet of suspected labels."""
    import numpy as np

    from agritransfer.data.deduplication import near_pairs
    from agritransfer.evaluation.frozen_features import out_of_fold_probabilities
    from agritransfer.evaluation.inference import predict
    from agritransfer.evaluation.label_errors import suspected_mislabels
    from agritransfer.evaluation.plots import draw_gallery
    from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset
    from agritransfer.models.loading import load_pretrained, load_processor

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
    alike = near_pairs(features, _similarity_of_crops(model, processor, source.images, photos, features))
    report["near"] = [
        {"files": [photos[a].file, photos[b].file], "similarity": round(similarity, 4)}
        for a, b, similarity in alike
        if groups[a] != groups[b]
    ]
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
    title = f"Labels to look at: {len(suspects)}, the most doubtful first"
    draw_gallery(arguments.output.with_name("suspects.png"), pictures, title)


def _groups_of(examination, whole: list[int]) -> list[str]:
    """A name for each whole photo that its copies share."""
    name = {place: f"copies {number}" for number, group in enumerate(examination.duplicates) for place in group}
    return [name.get(place) or examination.photos[place].group or f"photo {place}" for place in whole]


def _similarity_of_crops(model, processor, images, photos, features) -> float:
    """How alike a photo and its own middle (90 % of each side) are to this model, by their median."""
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
    """The middle of a picture, 90 % of each side, as PNG."""
    width, height = (round(side * (1 - CROP) / 2) for side in picture.size)
    file = io.BytesIO()
    picture.crop((width, height, picture.width - width, picture.height - height)).save(file, "PNG")
    return file.getvalue()
