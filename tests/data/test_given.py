"""Files, folders and patterns name each photo once, by the rules of a folder."""

import pytest

from agritransfer.data.readers.given import find_given
from agritransfer.errors import UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    names = ["a.jpg", "b.png", "notes.txt", "moving.gif", ".hidden.jpg", ".cache/c.jpg", "__MACOSX/a.jpg"]
    names += ["rust/d.jpg", "rust/deep/e.jpg", "rust/deep/.f.jpg", "odd [1]/g.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    # Two loops, which a walk without memory would follow for ever.
    (tmp_path / "rust/again").symlink_to(tmp_path / "rust")
    (tmp_path / "rust/deep/up").symlink_to(tmp_path / "rust")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_of(*given: str) -> tuple[list[str], dict[str, str]]:
    found = find_given(given)
    return [path.as_posix() for path in found.reasons], found.passed_over


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("?.*", ["a.jpg", "b.png"]),
        ("*.gif", ["moving.gif"]),
        ("**/*.jpg", ["a.jpg", "odd [1]/g.jpg", "rust/d.jpg", "rust/deep/e.jpg"]),
        ("rust/**", ["rust/d.jpg", "rust/deep/e.jpg"]),
        ("r*/*.jpg", ["rust/d.jpg"]),
        # A folder that matches is read whole, as the shell would give it.
        ("rust/d*", ["rust/d.jpg", "rust/deep/e.jpg"]),
        # A folder is itself before it is a pattern.
        ("odd [1]/*.jpg", ["odd [1]/g.jpg"]),
        ("[ab].*", ["a.jpg", "b.png"]),
    ],
)
def test_a_pattern_finds_photos(folder, pattern, expected):
    assert sorted(names_of(pattern)[0]) == expected
    assert sorted(names_of(f"{folder}/{pattern}")[0]) == [f"{folder}/{name}" for name in expected]


def test_what_a_pattern_passes_over_is_counted(folder):
    assert names_of("*")[1] == {
        ".cache": "hidden, 1 file",
        ".hidden.jpg": "hidden",
        "__MACOSX": "system folder, 1 file",
        "notes.txt": "not a photo",
        "rust/again": "a link to a folder that is listed already",
        "rust/deep/up": "a link to a folder that is listed already",
        "rust/deep/.f.jpg": "hidden",
    }


def test_each_photo_counts_once(folder):
    photos, passed_over = names_of("rust", "rust/d.jpg", f"{folder}/rust/../rust/d.jpg", "rust/again/deep/e.jpg")
    assert photos == ["rust/d.jpg", "rust/deep/e.jpg"]
    assert sum(reason == "given more than once" for reason in passed_over.values()) == 3


@pytest.mark.parametrize("name", ["", " ", "nowhere.jpg", "*.tif", "notes.*", "__MACOSX/*.png"])
def test_a_name_without_photos_is_refused(folder, name):
    with pytest.raises(UsageError, match="^no photo at .*; give files, folders with photos, or a pattern in quotes$"):
        find_given(["a.jpg", name])


def test_a_hidden_folder_that_is_named_is_read(folder):
    assert names_of(".cache")[0] == names_of(".cache/*.jpg")[0] == [".cache/c.jpg"]
