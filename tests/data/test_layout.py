"""Each layout of folders is read in the only way it can be read, or refused with all of them; never by silence."""

import shlex
from pathlib import Path

import pytest

from agritransfer.data.audit import class_faults
from agritransfer.data.readers.folder import read_folder
from agritransfer.data.readers.folder_names import is_source, splits_meant, without_marks
from agritransfer.data.readers.source import Columns
from agritransfer.data.readers.walk import find_files
from agritransfer.errors import DataError

# The folders, then the labels of each split; a folder of this table has two photos.
PLAIN = {
    "healthy rust": {"": "healthy rust"},
    "0 1 2": {"": "0 1 2"},
    "gray_mold mold fruit_set fruit": {"": "fruit fruit_set gray_mold mold"},
    "with_mites without_mites": {"": "with_mites without_mites"},
    "c0 c1 c2": {"": "c0 c1 c2"},
    "new old": {"": "new old"},
    "Tomato/healthy Tomato/rust Corn/healthy": {"": "Corn/healthy Tomato/healthy Tomato/rust"},
    "train/a train/b val/a val/b test/a test/b": {"train": "a b", "validation": "a b", "test": "a b"},
    "Train/a Train/b TEST/a TEST/b": {"train": "a b", "test": "a b"},
    "train/a train/b 'valid '/a 'valid '/b": {"train": "a b", "validation": "a b"},
    "training/a training/b validate/a dev/.x": {"train": "a b", "validation": "a"},
    "train/a train/b dev/a dev/b": {"train": "a b", "validation": "a b"},
    "train/0 train/1 test/0 test/1": {"train": "0 1", "test": "0 1"},
    "train/a train/b": {"train": "a b"},
    "healthy rust @eaDir/healthy __MACOSX/rust": {"": "healthy rust"},
}
# The same, with the start of the note that says how it was read.
READ = {
    "rust/train rust/test healthy/train healthy/test": (
        {"train": "healthy rust", "test": "healthy rust"},
        "the splits are inside the class folders, as in 'healthy/test'",
    ),
    "Corn/train/a Corn/test/a Corn/train/b Rice/train/a Rice/test/b": (
        {"train": "Corn/a Corn/b Rice/a", "test": "Corn/a Rice/b"},
        "the splits are inside the class folders, as in 'Corn/test/a'",
    ),
    "images/train/a images/train/b images/val/a": (
        {"train": "a b", "validation": "a"},
        "read inside 'images', which holds everything",
    ),
    "dataset/images/train/a dataset/images/train/b dataset/images/val/a": (
        {"train": "a b", "validation": "a"},
        "read inside 'dataset/images'",
    ),
    "'X(Augmented)/X(Augmented)/train/a' 'X(Augmented)/X(Augmented)/train/b' 'X(Augmented)/X(Augmented)/valid/a'": (
        {"train": "a b", "validation": "a"},
        "read inside 'X(Augmented)/X(Augmented)'",
    ),
    "PlantVillage/healthy PlantVillage/rust": ({"": "healthy rust"}, "read inside 'PlantVillage'"),
    "data/Corn/healthy data/Tomato/rust": ({"": "Corn/healthy Tomato/rust"}, "read inside 'data'"),
    "train_images/a train_images/b": ({"": "a b"}, "read inside 'train_images'"),
    "rust/rust healthy/healthy": ({"": "healthy rust"}, "every class folder contains a folder with its own name"),
    "rust/images healthy/images": ({"": "healthy rust"}, "every class folder contains a folder with images"),
    "train/images/a train/images/b test/images/a": (
        {"train": "a b", "test": "a"},
        "'images' is in every split and not part of the labels",
    ),
    "train/train/a train/train/b test/test/a": (
        {"train": "a b", "test": "a"},
        "each split folder is inside another, as in 'test/test/a'",
    ),
    # Read as classes, as documented, with a note.
    "healthy rust test": ({"": "healthy rust test"}, "'test' is read as a class; if it is not one, "),
    "healthy rust soil_test": ({"": "healthy rust soil_test"}, "'soil_test' is read as a class"),
    "valid invalid": ({"": "invalid valid"}, "'valid' is read as a class"),
    "healthy rust augmented": ({"": "augmented healthy rust"}, "'augmented' is read as a class"),
    "2021 2022": ({"": "2021 2022"}, "'2021' and '2022' are read as classes"),
    "day1 day2 day3": ({"": "day1 day2 day3"}, "'day1', 'day2' and 'day3' are read as classes"),
    "Tomato/healthy Tomato/rust Corn/healthy Corn/rust": (
        {"": "Corn/healthy Corn/rust Tomato/healthy Tomato/rust"},
        "'Corn' and 'Tomato' contain the same class folders and are read as labels such as 'Corn/healthy'",
    ),
    "leaf/0 leaf/1 fruit/0 fruit/1": ({"": "fruit/0 fruit/1 leaf/0 leaf/1"}, "'fruit' and 'leaf' contain the same"),
    "north/a north/b north/c south/a south/b": (
        {"": "north/a north/b north/c south/a south/b"},
        "'north' and 'south' contain the same class folders",
    ),
    "rust rust/early healthy": ({"": "healthy rust rust/early"}, "'rust' holds photos beside folders of photos"),
}
SPLITS, VERSIONS, SOURCES = "may be splits", "may be parts or versions", "may be places, days, plants or cameras"
EMPTY = "class folders without photos: ['blight']; add photos or remove the folders"
# The folders, what the message says of them, and a reading that it offers.
REFUSED = {
    "train/a train/b val_set/a val_set/b": (SPLITS, "mv photos/val_set photos/validation"),
    "train/a train/b 'Validation Data'/a": (SPLITS, "mv 'photos/Validation Data' photos/validation"),
    "train/a train/b eval/a eval/b": (SPLITS, "mv photos/eval photos/validation or photos/test"),
    "train/a train/b test/a holdout/a": (SPLITS, "mv photos/holdout photos/validation or photos/test"),
    "train_val/a train_val/b test/a test/b": (SPLITS, "for 'train_val' alone, give --dataset_name photos/train_val"),
    "train_images/a train_images/b test_images/a": (SPLITS, "mv photos/test_images photos/test && mv photos/train_im"),
    "train_images test_images": (SPLITS, "list the photos in photos/metadata.csv"),
    "entrenamiento/a entrenamiento/b prueba/a": (SPLITS, "mv photos/prueba photos/test"),
    "trian/a trian/b test/a": (SPLITS, "move 'trian' into a split folder or out of the way"),
    "training_set/a test_set/a": (SPLITS, "mv photos/training_set photos/train"),
    "train-2021/a train-2021/b test-2022/a": (SPLITS, "mv photos/train-2021 photos/train"),
    "01_train/a 01_train/b 02_test/a": (SPLITS, "mv photos/02_test photos/test"),
    "TrainData/a TestData/a": (SPLITS, "mv photos/TestData photos/test"),
    "trainset/a trainset/b testset/a": (SPLITS, "for 'trainset' alone, give --dataset_name photos/trainset"),
    "tomato_train/a tomato_test/a": (SPLITS, "mv photos/tomato_test photos/test"),
    "rust_train rust_test healthy_train healthy_test": (SPLITS, "move each into the folder of its split"),
    "train/a train/b train_set/a": (SPLITS, "make them one folder for each of train, validation and test"),
    "rust/train rust/val_set healthy/train": (SPLITS, "mv photos/rust/val_set photos/rust/validation"),
    "rust/train rust/test healthy": (SPLITS, "put the photos of every class into such folders"),
    "train/a train/b unlabeled": (SPLITS, "move 'unlabeled' into a split folder or out of the way"),
    "train/a test/a new": (SPLITS, "move 'new' into a split folder or out of the way"),
    "healthy rust test/healthy test/rust": (SPLITS, "move 'healthy' and 'rust' into a split folder"),
    "plants/train/a plants/test/a figures": (SPLITS, "for 'plants' alone, give --dataset_name photos/plants"),
    "rust rust/test healthy": (SPLITS, "to leave 'test' out, move it out of photos/rust"),
    "train/a train/b test": ("the photos of 'test' are not in class folders", "move 'photos/test' out of 'photos'"),
    "train test": ("are not in class folders", "such as photos/test/CLASS/"),
    "train/a train/b val/a valid/b": ("several folders for one split: ['train', 'val', 'valid']", "merge or rename"),
    "train/a train/b test/-": ("the split folder 'test' contains no photos", "remove the folder"),
    "train/a train/b test/a/- test/b/-": ("the split folder 'test' contains no photos", "remove the folder"),
    "train/a train/b test/a/*.gif": ("the split folder 'test' contains no photos", "remove the folder"),
    "fold0/a fold0/b fold1/a fold1/b": (VERSIONS, "for 'fold0' alone, give --dataset_name photos/fold0"),
    "fold0 fold1 fold2 fold3 fold4": (VERSIONS, "move 'fold1', 'fold2', 'fold3' and 'fold4' away"),
    "fold0/train/a fold0/test/b fold1/train/a fold1/test/b": (VERSIONS, "for 'fold0' alone"),
    "batch1/a batch1/b batch2/a": (VERSIONS, "for 'batch1' alone"),
    "original/a original/b augmented/a": (VERSIONS, "for 'original' alone, give --dataset_name photos/original"),
    "augmented original": (VERSIONS, "to use 'original' alone, move 'augmented' away"),
    "'Augmented Data'/a 'Original Data'/a 'Original Data'/b": (VERSIONS, "--dataset_name 'photos/Original Data'"),
    "Potato_augmented/a Potato_original/a Potato_original/b": (VERSIONS, "for 'Potato_original' alone"),
    "color/a color/b grayscale/a grayscale/b segmented/a": (VERSIONS, "photos of one leaf must share a group"),
    "plantvillage/color/a plantvillage/color/b plantvillage/segmented/a": (VERSIONS, "photos/plantvillage/color"),
    "train/color/a train/color/b train/segmented/a test/color/a": (VERSIONS, "'photos/*' has folders"),
    "raw/a raw/b processed/a": (VERSIONS, "for 'raw' alone"),
    "cropped/a full/a full/b": (VERSIONS, "for 'full' alone"),
    "images/a images/b masks/a": (VERSIONS, "for 'images' alone"),
    "healthy rust rust_augmented": (VERSIONS, "to use 'rust' alone, move 'rust_augmented' away"),
    "healthy rust 'rust - Copy'": (VERSIONS, "to use 'rust' alone, move 'rust - Copy' away"),
    "labeled/a labeled/b unlabeled": (VERSIONS, "for 'labeled' alone"),
    "healthy rust rust/augmented": (VERSIONS, "to leave 'augmented' out, move it out of photos/rust"),
    "healthy/original healthy/aug rust/original": (VERSIONS, "to use 'original' alone, move 'aug' away"),
    "'X(Augmented)/X(Augmented)/train/a' 'X(Augmented)/X(Augmented)/train/b' test/test": (
        SPLITS,
        "for 'X(Augmented)' alone, give --dataset_name 'photos/X(Augmented)'",
    ),
    "'Original Images/Original Images/a' 'Original Images/Original Images/b' 'Augmented Images/Augmented Images/a'": (
        VERSIONS,
        "for 'Original Images' alone, give --dataset_name 'photos/Original Images'",
    ),
    "camera1/a camera1/b camera2/a camera2/b": (SOURCES, "photos/camera1 --shift_dataset_name photos/camera2"),
    "2021/a 2021/b 2022/a": (SOURCES, "each folder as a group"),
    "2021-05-03/a 2021-05-03/b 2021-06-01/a": (SOURCES, "for '2021-05-03' alone"),
    "field/a field/b lab/a lab/b": (SOURCES, "--dataset_name photos/lab --shift_dataset_name photos/field"),
    "June/a June/b July/a": (SOURCES, "for 'June' alone"),
    "0h/a 0h/b 24h/a": (SOURCES, "for '0h' alone"),
    "256x256/a 256x256/b 512x512/a": (SOURCES, "for '256x256' alone"),
    "siteA/a siteA/b siteB/a siteB/c": (SOURCES, "for 'siteA' alone"),
    "rust/plant1 rust/plant2 healthy/plant3": (SOURCES, "move the photos into photos/rust"),
    "healthy rust PlantVillage/healthy PlantVillage/rust": ("copies of the others", "move it out of photos"),
    ". healthy rust": ("'0.jpg' and 1 other photo are not in class folders", "such as photos/CLASS/"),
    "data data/healthy data/rust": ("'data/0.jpg' and 1 other photo are not", "such as photos/data/CLASS/"),
    "healthy rust blight/-": (EMPTY, ""),
    "healthy rust blight/*.gif": (EMPTY, ""),
    "healthy rust blight/.hidden": (EMPTY, ""),
    "healthy rust blight/@eaDir": (EMPTY, ""),
    "healthy rust blight/a/- blight/b/-": ("without photos: ['blight/a', 'blight/b']", ""),
    "healthy rust test/-": ("without photos: ['test']", ""),
    "healthy Rust 'rust '": ("differ only by case, spaces or Unicode form: ['Rust', 'rust ']", ""),
    "'leaf  spot' 'leaf spot' rust": ("differ only by case, spaces or Unicode form", ""),
    "*.gif": ("contains no photos", "1.gif in it: GIF is not read here; convert it"),
}


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A folder that messages call `photos`."""
    monkeypatch.chdir(tmp_path)
    return Path("photos")


def put(folder: Path, layout: str) -> None:
    """Make folders of two empty photos each, and those that end in `-` (empty), `.hidden` or `*.gif` (one file)."""
    for name in shlex.split(layout):
        path = folder / name
        if path.name == "-":
            path.parent.mkdir(parents=True)
        elif path.name in (".hidden", ".x", "*.gif"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name.replace("*", "1")).touch()
        else:
            path.mkdir(parents=True, exist_ok=True)
            for number in range(2):
                (path / f"{number}.jpg").touch()


def labels_of_splits(folder: Path) -> dict[str, str]:
    found = {}
    for photo in read_folder(folder, find_files(folder), Columns()).photos:
        found.setdefault(photo.split, set()).add(photo.label)
    return {split: " ".join(sorted(labels)) for split, labels in found.items()}


@pytest.mark.parametrize("layout", PLAIN)
def test_a_plain_layout_is_read_without_a_note(layout, photos):
    put(photos, layout)
    assert labels_of_splits(photos) == PLAIN[layout]
    assert read_folder(photos, find_files(photos), Columns()).notes == ()


@pytest.mark.parametrize("layout", READ)
def test_a_layout_with_one_reading_is_read_and_the_note_says_how(layout, photos):
    put(photos, layout)
    labels, start = READ[layout]
    assert labels_of_splits(photos) == labels
    assert any(note.startswith(start) for note in read_folder(photos, find_files(photos), Columns()).notes)


@pytest.mark.parametrize("layout", REFUSED)
def test_a_layout_with_several_readings_is_refused_with_each(layout, photos):
    put(photos, layout)
    what, reading = REFUSED[layout]
    with pytest.raises(DataError) as refused:
        faults = class_faults(read_folder(photos, find_files(photos), Columns()))
        raise DataError(*faults)
    message = str(refused.value)
    assert what in message and reading in message and "\n" not in message
    if what in (SPLITS, VERSIONS, SOURCES):
        assert "list the photos in photos/metadata.csv" in message
        assert message.count("photos)") + message.count("photo)") >= 1


def test_the_tables_cover_enough_layouts():
    assert len(PLAIN) + len(READ) + len(REFUSED) >= 90


def test_a_long_tree_is_cut_and_counted(photos):
    put(photos, " ".join(f"fold{number}" for number in range(10)))
    with pytest.raises(DataError, match=r"fold5 \(2 photos\) and 4 more folders; .* 'fold6' and 3 more away"):
        read_folder(photos, find_files(photos), Columns())


def test_the_commands_of_a_message_lead_to_a_set_that_is_read(photos):
    put(photos, "train/a train/b val_set/a val_set/b")
    (photos / "val_set").rename(photos / "validation")
    assert labels_of_splits(photos) == {"train": "a b", "validation": "a b"}
    put(photos / "versions", "color/a color/b segmented/a segmented/b")
    assert labels_of_splits(photos / "versions/color") == {"": "a b"}


def test_words_of_names():
    assert splits_meant("val_set") == ["validation"] and splits_meant("evalset") == ["validation", "test"]
    assert splits_meant("contest") == splits_meant("evaluated leaves") == splits_meant("devil") == []
    for name in ("fold0", "Fold-1", "train_images", "TestImages", "01_train", "Training Set 80%", "raw", "part a"):
        assert without_marks(name) == (), name
    for name in ("class_1", "0", "rust", "party", "fullmoon", "Tomato___healthy"):
        assert without_marks(name) != (), name
    assert without_marks("rust_augmented") == without_marks("rust_fold1") == ("rust",)
    for name in (
        "camera1",
        "siteA",
        "plant 3",
        "2021",
        "2021-05-03",
        "05_03_2021",
        "20210503",
        "lab",
        "iPhone 12",
        "0h",
        "v2",
    ):
        assert is_source(name), name
    for name in ("plant", "0", "12", "123456", "lab rust", "Cornfield", "healthy 2021", "v", "h"):
        assert not is_source(name), name
