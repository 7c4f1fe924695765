"""Every file of a folder is listed once: as a photo, an image that is not read, another file, or passed over."""

import os

import pytest

from agritransfer.data.readers.walk import find_files
from agritransfer.errors import DataError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_each_file_is_in_one_list(tmp_path):
    touch(tmp_path, "rust/1.JPG", "rust/2.gif", "rust/3.CR2", "notes.txt", "rust/._1.JPG", ".DS_Store")
    touch(tmp_path, "rust/.ipynb_checkpoints/1.jpg", "__MACOSX/rust/1.jpg", "@eaDir/1.jpg/thumb.jpg", "@eaDir/2.jpg")
    (tmp_path / "mosaic").mkdir()
    found = find_files(tmp_path)
    assert list(found.photos) == ["rust/1.JPG"]
    assert found.unread == {
        "rust/2.gif": "GIF is not read here; convert it to JPEG or PNG",
        "rust/3.CR2": "raw is not read here; convert it to JPEG or PNG",
    }
    assert list(found.others) == ["notes.txt"]
    assert found.empty_folders == ["mosaic"]
    assert sorted(found.passed_over) == [
        ".DS_Store (hidden)",
        "@eaDir (system folder, 2 files)",
        "__MACOSX (system folder, 1 file)",
        "rust/._1.JPG (hidden)",
        "rust/.ipynb_checkpoints (hidden, 1 file)",
    ]


def test_a_loop_of_links_is_listed_once(tmp_path):
    touch(tmp_path, "photos/rust/1.jpg", "photos/healthy/2.jpg", "elsewhere/3.jpg")
    folder = tmp_path / "photos"
    (folder / "all").symlink_to(folder)
    (folder / "a_rust").symlink_to(folder / "rust")
    (folder / "mosaic").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(folder)
    found = find_files(folder)
    assert list(found.photos) == ["healthy/2.jpg", "mosaic/3.jpg", "rust/1.jpg"]
    assert sorted(found.passed_over) == [
        "a_rust (a link to a folder that is listed already)",
        "all (a link to a folder that is listed already)",
        "mosaic/back (a link to a folder that is listed already)",
    ]


def test_a_link_to_the_folder_around_lists_this_one_once(tmp_path):
    touch(tmp_path, "photos/rust/1.jpg", "mosaic/2.jpg")
    (tmp_path / "photos/around").symlink_to(tmp_path)
    found = find_files(tmp_path / "photos")
    assert list(found.photos) == ["around/mosaic/2.jpg", "rust/1.jpg"]
    assert found.passed_over == ["around/photos (a link to a folder that is listed already)"]


def test_a_link_to_nothing_is_a_photo_and_a_pipe_is_passed_over(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "missing.jpg")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find_files(tmp_path)
    assert list(found.photos) == ["gone.jpg", "itself.jpg"]
    assert found.passed_over == ["pipe.jpg (not a regular file)"]


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied; correct its permissions"):
        find_files(tmp_path)
