"""Tests that the exports of Roboflow, COCO and Label Studio give one label for each photo, or are refused by name."""

import json

import pytest
from test_tables import NAMES, PLAIN, labels, put

from agritransfer.data.sources import read_source
from agritransfer.errors import DataError, UsageError

SPLITS = {"train": "train", "valid": "validation", "test": "test"}
# As Roboflow writes it, with a blank before each class and each value.
ROBOFLOW = "filename, healthy, leaf rust\n1.png, 1, 0\n2.png, 0, 1\n3.png, 1, 0\n4.png, 0, 1\n"
EXPORT = "project-1-at-2024-05-02-10-12-1a2b3c4d.json"


def coco(names, annotated):
    """A COCO file as Roboflow writes it: the first category is the name of the project and has no annotation."""
    categories = ["leaves", "healthy", "rust"]
    return {
        "info": {"year": "2024", "version": "1", "description": "Exported from roboflow.com"},
        "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
        "categories": [{"id": i, "name": name, "supercategory": "none"} for i, name in enumerate(categories)],
        "images": [{"id": i, "license": 1, "file_name": name, "height": 6, "width": 8} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": [0, 0, 3, 3], "area": 9, "iscrowd": 0}
            for i, (image, category) in enumerate(annotated)
        ],
    }


ONE_EACH = [(0, 1), (1, 2), (1, 2), (2, 1), (3, 2)]
COCO_LABELS = ["healthy", "rust", "healthy", "rust"]


def task(number, image, *choices, cancelled=False, control="choice"):
    """A task as Label Studio exports it, with one annotation for each choice, or each list of choices."""
    annotations = [
        {
            "id": 10 * number + i,
            "completed_by": i,
            "result": [
                {
                    "value": {"choices": [each] if isinstance(each, str) else each},
                    "id": "Dx_aB91ISN",
                    "from_name": control,
                    "to_name": "image",
                    "type": "choices",
                    "origin": "manual",
                }
            ],
            "was_cancelled": cancelled,
            "ground_truth": False,
            "lead_time": 4.288,
        }
        for i, each in enumerate(choices)
    ]
    data = {"image": image if "/" in image else f"/data/upload/1/{image}"}
    return {"id": number, "annotations": annotations, "drafts": [], "predictions": [], "data": data, "project": 1}


TASKS = [task(1, "1.png", "a"), task(2, "2.png", "b"), task(3, "3.png", "a"), task(4, "4.png", "b")]
FLAT = [
    {"image": f"/data/upload/1/{n}.png", "id": n, "choice": "ba"[n % 2], "annotator": 1, "annotation_id": n}
    for n in range(1, 5)
]
CSV = "annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at\n" + "".join(
    f"{n},1,{'ba'[n % 2]},2024-05-02,{n},/data/upload/1/{n}.png,1.5,2024-05-02\n" for n in range(1, 5)
)


def test_the_classes_of_roboflow_are_labels_and_its_folders_splits(tmp_path):
    for split in SPLITS:
        put(tmp_path, *(f"{split}/{name}" for name in NAMES), "README.roboflow.txt")
        (tmp_path / split / "_classes.csv").write_text(ROBOFLOW.replace("4.png, 0, 1", "4.png, 0, 0"))
    source = read_source(str(tmp_path))
    assert len(source.photos) == 9 and source.labels == ["healthy", "leaf rust"]
    assert all(photo.split == SPLITS[photo.file.split("/")[0]] for photo in source.photos)
    assert source.left_out == (
        *(f"{split}/4.png (without a class in _classes.csv)" for split in sorted(SPLITS)),
        "README.roboflow.txt (not a photo)",
    )


REFUSED_ROBOFLOW = {
    r"1 photo several classes \(multi-label\), such as '2.png' \(line 3: healthy, leaf rust\)": ROBOFLOW.replace(
        "2.png, 0", "2.png, 1"
    ),
    r"line 3: the column 'healthy' holds ' 0.7'; 0 or 1 is needed": ROBOFLOW.replace("2.png, 0", "2.png, 0.7"),
    r"needs the columns filename .* it has \['Pixel Value', 'Class'\]": "Pixel Value, Class\n0, background\n",
    r"1 missing photo, such as '9.png' \(line 3\)": ROBOFLOW.replace("2.png", "9.png"),
}


@pytest.mark.parametrize("reason", REFUSED_ROBOFLOW)
def test_classes_of_roboflow_that_are_not_one_for_each_photo_are_refused(reason, tmp_path):
    put(tmp_path, *NAMES)
    (tmp_path / "_classes.csv").write_text(REFUSED_ROBOFLOW[reason])
    with pytest.raises(DataError, match=reason):
        read_source(str(tmp_path))


# Where Roboflow, COCO itself, CVAT and Label Studio put the file and the photos of a split.
PLACES = {
    "{split}/_annotations.coco.json": "{split}/",
    "annotations/instances_{split}2017.json": "{split}2017/",
    "annotations/instances_{split}.json": "images/{split}/",
    "{split}/result.json": "{split}/images/",
}


@pytest.mark.parametrize("place", PLACES)
def test_the_one_category_of_a_photo_in_coco_is_its_label(place, tmp_path):
    for split in SPLITS:
        photos = PLACES[place].format(split=split)
        put(tmp_path, *(photos + name for name in NAMES))
        path = tmp_path / place.format(split=split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(coco(NAMES, ONE_EACH)))
    source = read_source(str(tmp_path))
    assert [photo.label for photo in source.photos] == COCO_LABELS * 3
    assert all(SPLITS[split] == photo.split for photo in source.photos for split in SPLITS if split in photo.file)
    assert source.left_out == ()


def test_a_coco_file_in_annotations_may_be_the_data_set_itself(tmp_path):
    put(tmp_path, *(f"train2017/{name}" for name in NAMES), "val2017/5.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(coco(NAMES, ONE_EACH)))
    source = read_source(str(tmp_path / "annotations/instances_train2017.json"))
    assert [(photo.label, photo.split) for photo in source.photos] == [(label, "train") for label in COCO_LABELS]
    assert source.left_out == ("val2017/5.png (not in annotations/instances_train2017.json)",)


def test_a_coco_file_may_be_the_data_set_itself_and_photos_without_annotation_are_counted(tmp_path):
    put(tmp_path, *NAMES, "5.png")
    (tmp_path / "labels.json").write_text(json.dumps(coco(NAMES, ONE_EACH[:-1])))
    for name in (tmp_path, tmp_path / "labels.json"):
        source = read_source(str(name))
        assert labels(source) == list(zip(NAMES[:3], COCO_LABELS[:3], strict=True))
        assert source.left_out == ("4.png (without an annotation in labels.json)", "5.png (not in labels.json)")


REFUSED_COCO = {
    r"2 images with several categories \(multi-label\), such as '1.png' \(healthy, rust\)": coco(
        NAMES, [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]
    ),
    r"lists 1 missing photo, such as '9.png' \(image 4\)": coco([*NAMES, "9.png"], ONE_EACH),
    r"no complete COCO file: KeyError at 7": coco(NAMES, [(0, 7)]),
    r"no complete COCO file: KeyError at 'name'": {**coco(NAMES, ONE_EACH), "categories": [{"id": 1}]},
    r"has 1 annotated image that is not listed": coco(NAMES, [(9, 1)]),
    r"lists 1 photo more than once, such as '1.png'": coco(["1.png", "./1.png"], [(0, 1), (1, 1)]),
    r"has a label for none of the photos": coco(NAMES, []),
}


@pytest.mark.parametrize("reason", REFUSED_COCO)
def test_coco_without_one_category_for_each_photo_is_refused(reason, tmp_path):
    put(tmp_path, *NAMES)
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(REFUSED_COCO[reason]))
    with pytest.raises(DataError, match=reason):
        read_source(str(tmp_path))


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    put(tmp_path, *NAMES)
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(coco(NAMES, ONE_EACH))[:300])
    with pytest.raises(DataError, match=r"_annotations.coco.json' cannot be read as JSON \(.*; export it again"):
        read_source(str(tmp_path))


EXPORTS = {
    EXPORT: json.dumps(TASKS),
    "min.json": json.dumps(FLAT),
    "project-1.csv": CSV,
    "project-1.tsv": CSV.replace(",", "\t"),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_the_choices_of_label_studio_are_labels(name, tmp_path):
    put(tmp_path, *(f"photos/{each}" for each in NAMES))
    (tmp_path / name).write_text(EXPORTS[name])
    for dataset in (tmp_path, tmp_path / name):
        source = read_source(str(dataset))
        assert labels(source) == [(f"photos/{each}", label) for each, label in zip(NAMES, "abab", strict=True)]
        assert source.left_out == ()


def test_skipped_tasks_are_left_out_and_annotators_who_agree_are_one(tmp_path):
    put(tmp_path, *NAMES)
    tasks = [task(1, "1.png", "a", cancelled=True), task(2, "2.png"), task(3, "3.png", "a", "a"), TASKS[3]]
    (tmp_path / EXPORT).write_text(json.dumps(tasks))
    source = read_source(str(tmp_path))
    assert labels(source) == [("3.png", "a"), ("4.png", "b")]
    assert source.left_out == tuple(f"{name} (without a choice in {EXPORT})" for name in NAMES[:2])


def test_photos_of_one_name_are_told_apart_by_their_folders(tmp_path):
    put(tmp_path, "x/1.png", "y/1.png", "my leaf.png")
    local = [task(1, "/data/local-files/?d=set/x/1.png", "a"), task(2, "/data/local-files/?d=set/y/1.png", "b")]
    other = task(3, "https://host/my%20leaf.png?token=1", "a")
    other["data"]["note"] = "http://[no URL"
    (tmp_path / EXPORT).write_text(json.dumps([*local, other]))
    assert labels(read_source(str(tmp_path))) == [("x/1.png", "a"), ("y/1.png", "b"), ("my leaf.png", "a")]
    (tmp_path / EXPORT).write_text(json.dumps([task(1, "1.png", "a")]))
    with pytest.raises(DataError, match=r"task 1: '/data/upload/1/1.png' may be x/1.png and y/1.png"):
        read_source(str(tmp_path))


REFUSED_EXPORTS = {
    r"annotators disagree about 2 photos, such as '1.png' \(a, b\)": [
        task(1, "1.png", "a", "b"),
        task(2, "2.png", "a"),
        task(3, "2.png", "b"),
    ],
    r"1 photo several choices \(multi-label\), such as '/data/upload/1/1.png' \(task 1: a, b\)": [
        task(1, "1.png", ["a", "b"])
    ],
    r"1 missing photo, such as '/data/upload/1/1a2b3c4d-1.png' \(task 1\); the folder has '1.png'": [
        task(1, "1a2b3c4d-1.png", "a")
    ],
    r"has no choices, which are the labels of photos; export boxes as COCO": [task(1, "1.png")],
    r"1 photo several choices \(multi-label\), such as '/data/upload/1/1.png' \(task 1: 1, 2\)": [
        task(1, "1.png", [1, 2])
    ],
    r"no complete export of Label Studio: KeyError at 'result'": [{**TASKS[0], "annotations": [{"id": 1}]}],
    r"annotators disagree about 1 photo, such as '1.png' \(a, b\)": [*FLAT, {**FLAT[0], "choice": "b"}],
    r"1 photo several choices \(multi-label\), such as '/data/upload/1/1.png' \(task 5: a, b\)": [
        *FLAT,
        {**FLAT[0], "choice": {"choices": ["a", "b"]}},
    ],
}


@pytest.mark.parametrize("reason", REFUSED_EXPORTS)
def test_an_export_without_one_choice_for_each_photo_is_refused(reason, tmp_path):
    put(tmp_path, *NAMES)
    (tmp_path / EXPORT).write_text(json.dumps(REFUSED_EXPORTS[reason]))
    with pytest.raises(DataError, match=reason):
        read_source(str(tmp_path))


def test_several_questions_need_the_flag(tmp_path):
    put(tmp_path, *NAMES)
    both = [task(1, "1.png", "a"), task(2, "2.png", "b"), task(3, "3.png", "wet", control="weather")]
    (tmp_path / EXPORT).write_text(json.dumps(both))
    with pytest.raises(UsageError, match=r"has the choices \['choice', 'weather'\]; name one with --label_column_name"):
        read_source(str(tmp_path))
    with pytest.raises(UsageError, match=r"task 1 has no field 'photo' for --image_column_name; it has \['image'\]"):
        read_source(str(tmp_path), image_column="photo", label_column="choice")
    assert labels(read_source(str(tmp_path), label_column="choice")) == [("1.png", "a"), ("2.png", "b")]
    with pytest.raises(UsageError, match=r"has no groups for --group_column_name"):
        read_source(str(tmp_path), label_column="choice", group_column="plant")


def test_labels_of_several_kinds_are_refused_and_other_json_is_no_table(tmp_path):
    put(tmp_path, *NAMES)
    (tmp_path / "metadata.csv").write_text(PLAIN)
    (tmp_path / "1.json").write_text(json.dumps({"version": "5.4.1", "shapes": [], "imagePath": "1.png"}))
    assert read_source(str(tmp_path)).left_out == ("1.json (not a photo)",)
    (tmp_path / "result.json").write_text(json.dumps(coco(NAMES, ONE_EACH)))
    with pytest.raises(DataError, match=r"labels of several kinds: metadata.csv and result.json; keep one kind"):
        read_source(str(tmp_path))
