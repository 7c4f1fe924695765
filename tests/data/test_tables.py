"""Tests that every cell of a table of labels is read right or refused with its line, whatever the format."""

import json
import os
import unicodedata

import pyarrow
import pyarrow.parquet
import pytest

from agritransfer.__main__ import main
from agritransfer.data.readers.label_files import is_label_file
from agritransfer.data.readers.table import read_table
from agritransfer.data.sources import read_source
from agritransfer.errors import DataError, UsageError

NAMES = ["1.png", "2.png", "3.png", "4.png"]
PLAIN = "file_name,label\n1.png,a\n2.png,b\n3.png,a\n4.png,b\n"
PLAIN_ROWS = [("1.png", "a"), ("2.png", "b"), ("3.png", "a"), ("4.png", "b")]
LINES = [json.dumps({"file_name": name, "label": label}) for name, label in PLAIN_ROWS]


def put(folder, *names):
    """Empty files: labels are read without opening a photo."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def put_parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def labels(source):
    return [(photo.file, photo.label) for photo in source.photos]


READ = {
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "a separator line": "sep=;\n" + PLAIN.replace(",", ";"),
    "UTF-16": PLAIN.replace(",", "\t").encode("utf-16"),
    "a byte order mark": PLAIN.encode("utf-8-sig"),
    "CR only": PLAIN.replace("\n", "\r"),
    "CR and LF": PLAIN.replace("\n", "\r\n"),
    "empty lines": PLAIN.replace("3.png", "\n,\n \n3.png"),
    "a header with blanks and capitals": PLAIN.replace("file_name,label", " File Name , Label"),
    "dot slash": PLAIN.replace("1.png", "./1.png"),
    "blanks around a path": PLAIN.replace("1.png", " 1.png "),
    "a pandas index": ",file_name,label\n0,1.png,a\n1,2.png,b\n2,3.png,a\n3,4.png,b\n",
    "a comma at each end": PLAIN.replace("\n", ",\n"),
    "quoted cells": PLAIN.replace("1.png,a", '"1.png","a"'),
    "another name for the label": PLAIN.replace("label", "species"),
}


@pytest.mark.parametrize("what", READ)
def test_a_table_that_says_the_same_in_other_words_is_read(what, tmp_path):
    put(tmp_path, *NAMES)
    content = READ[what]
    (tmp_path / "metadata.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert labels(read_source(str(tmp_path))) == PLAIN_ROWS


def test_labels_are_stripped_and_the_audit_says_how_many(tmp_path, photos, capsys):
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))[:6]
    rows = [f"{photos}/{name},{'nan' if i % 2 else 'rust '}\n" for i, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("file_name,label\n" + "".join(rows))
    main(["audit", str(tmp_path / "labels.csv"), "--output", str(tmp_path / "audit.json")])
    lines = capsys.readouterr().out.splitlines()
    assert "note: blanks around 3 labels of labels.csv were removed" in lines
    assert "note: the class 'nan' of labels.csv (3 photos) may be a missing value" in lines


def test_paths_with_backslashes_or_in_another_unicode_form_mean_the_photo(tmp_path):
    composed = unicodedata.normalize("NFC", "train/é.png")
    put(tmp_path, composed, "train/x/2.png", "train/a\\b.png")
    (tmp_path / "metadata.csv").write_text(
        f"file_name,label\n{unicodedata.normalize('NFD', composed)},a\ntrain\\x\\2.png,b\ntrain/a\\b.png,c\n"
    )
    assert labels(read_source(str(tmp_path))) == [(composed, "a"), ("train/x/2.png", "b"), (r"train/a\\b.png", "c")]


REFUSED = {
    r"line 3: 1 cell more than columns, such as 'bacterial'; put a cell that contains ',' in double": PLAIN.replace(
        "2.png,b", "2.png,leaf spot, bacterial"
    ),
    r"has 1 row without a label, such as '2.png' \(line 3\)": PLAIN.replace("2.png,b", "2.png,  "),
    r"line 3: there is a NUL character": PLAIN.replace("2.png,b", "2.png,b\0"),
    r"line 3 cannot be read as CSV \(unexpected end of data\); close each double quote": PLAIN.replace(
        "2.png,b", '2.png,"b'
    ),
    r"line 5 cannot be read as CSV \(field larger": PLAIN.replace("4.png,b", f"4.png,{'b' * 140_000}"),
    r"has the column 'label' 2 times": PLAIN.replace("file_name,label", "file_name,label,Label"),
    r"line 3: the column 'label' holds a line break": PLAIN.replace("2.png,b", '2.png,"b\nx"'),
    r"line 4: the column 'file_name' holds a line break or a control": PLAIN.replace("3.png", "3.png\x07"),
    r"line 3: the column 'file_name' is empty": PLAIN.replace("2.png", " "),
    r"is not UTF-8 \(line 3\)": PLAIN.replace("2.png,b", "2.png,maïs").encode("latin-1"),
    r"such as '2.PNG' \(line 3\); the folder has '2.png'": PLAIN.replace("2.png", "2.PNG"),
    r"such as '%32.png' \(line 3\); the folder has '2.png'": PLAIN.replace("2.png", "%32.png"),
    r"such as '../../2.png' \(line 3\); the folder has '2.png'": PLAIN.replace("2.png", "../../2.png"),
    r"such as 'notes.txt' \(line 3\); that file is hidden, elsewhere or no photo": PLAIN.replace("2.png", "notes.txt"),
    r"such as '2' \(line 3\); the folder has '2.png'": PLAIN.replace("2.png", "2"),
    r"line 3: the label \"\['a', 'b'\]\" is a list \(multi-label\)": PLAIN.replace("2.png,b", "2.png,\"['a', 'b']\""),
    r"'1.png' \(line 2 as 'a' and line 6 as 'b'\); keep one": PLAIN + "./1.png,b\n",
    r"line 3 has the split 'eval'; use train": "file_name,label,split\n1.png,a,train\n2.png,b,eval\n",
    r"line 1 cannot be read as CSV \(field larger": "x" * 200_000,
    r"has no rows": "file_name,label\n",
    r"needs rows with the columns file_name,label; it has \['1.png', 'a'\]": PLAIN.partition("\n")[2],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_cell_that_cannot_be_right_is_refused_with_its_line(reason, tmp_path):
    put(tmp_path, *NAMES, "notes.txt")
    content = REFUSED[reason]
    (tmp_path / "metadata.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=reason) as refused:
        read_source(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_columns_are_named_by_flags_or_found_if_there_is_one_candidate(tmp_path):
    put(tmp_path, *NAMES)
    table = tmp_path / "Metadata.csv"
    table.write_text("path,species,variety,plant\n1.png,a,x,p\n2.png,b,y,q\n3.png,a,x,\n")
    columns = {"image_column": "path", "label_column": "variety", "group_column": "plant"}
    source = read_source(str(tmp_path), **columns)
    assert labels(source) == [("1.png", "x"), ("2.png", "y"), ("3.png", "x")]
    assert [photo.group for photo in source.photos] == ["p", "q", ""]
    assert source.left_out == ("4.png (not in Metadata.csv)",)
    assert source.notes == ("the labels are the column 'variety' of Metadata.csv",)
    with pytest.raises(
        UsageError, match=r"no column 'label'; name one of \['species', 'variety', 'plant'\] with --lab"
    ):
        read_source(str(tmp_path), image_column="path")
    with pytest.raises(UsageError, match="no column 'crop' for --label_column_name; it has"):
        read_source(str(tmp_path), label_column="crop")


def test_json_lines_and_parquet_are_read_as_a_csv_is(tmp_path):
    put(tmp_path, *NAMES)
    (tmp_path / "metadata.jsonl").write_text("\n".join([*LINES[:3], "", LINES[3]]))
    assert labels(read_source(str(tmp_path))) == PLAIN_ROWS
    (tmp_path / "metadata.jsonl").unlink()
    put_parquet(tmp_path / "metadata.parquet", file_name=NAMES, label=[0, 1, 0, 1])
    assert labels(read_source(str(tmp_path))) == list(zip(NAMES, "0101", strict=True))


def test_the_names_of_a_class_label_in_parquet_are_the_labels(tmp_path):
    put(tmp_path, *NAMES)
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["healthy", "rust"]}}}}
    for values, found in (([0, 1, 0, 1], ["healthy", "rust"] * 2), ([0, 1, 0, 2], None)):
        table = pyarrow.table({"file_name": NAMES, "label": values}, metadata={"huggingface": json.dumps(names)})
        pyarrow.parquet.write_table(table, tmp_path / "metadata.parquet")
        if found:
            assert [photo.label for photo in read_source(str(tmp_path)).photos] == found
        else:
            with pytest.raises(DataError, match=r"row 4: the label 2 has no name; the names are \['healthy', 'rust'\]"):
                read_source(str(tmp_path))


REFUSED_LINES = {
    r"line 4 cannot be read as JSON \(Expecting value": '{"file_name": "4.png", "label": ',
    r"line 4: the column 'label' holds several values, \['a', 'b'\]": '{"file_name": "4.png", "label": ["a", "b"]}',
    r"has 1 row without a label, such as '4.png' \(line 4\)": '{"file_name": "4.png", "label": NaN}',
    r"line 4: each line must be an object": "[1]",
    r"line 4: a column occurs twice": '{"file_name": "4.png", "label": "a", "label": "b"}',
    r"line 4: the column 'label' holds a line break or a control": r'{"file_name": "4.png", "label": "\ud800"}',
    r"line 4 cannot be read as JSON \(maximum recursion": "[" * 100_000,
}


@pytest.mark.parametrize("reason", REFUSED_LINES)
def test_a_line_of_json_that_cannot_be_right_is_refused(reason, tmp_path):
    put(tmp_path, *NAMES)
    (tmp_path / "metadata.jsonl").write_text("\n".join([*LINES[:3], REFUSED_LINES[reason]]))
    with pytest.raises(DataError, match=reason):
        read_source(str(tmp_path))


def test_parquet_that_cannot_be_right_is_refused(tmp_path):
    put(tmp_path, *NAMES)
    path = tmp_path / "metadata.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"metadata.parquet.* cannot be read as parquet \(.*; "):
        read_source(str(tmp_path))
    put_parquet(path, file_name=NAMES, label=["a", None, "a", "b"])
    with pytest.raises(DataError, match=r"1 row without a label, such as '2.png' \(row 2\)"):
        read_source(str(tmp_path))
    twice = pyarrow.Table.from_arrays([pyarrow.array(NAMES)] * 3, names=["file_name", "label", "label"])
    pyarrow.parquet.write_table(twice, path)
    with pytest.raises(DataError, match=r"metadata.parquet of .* has several columns 'label'; rename all but one"):
        read_source(str(tmp_path))
    put_parquet(path, file_name=NAMES, label=[["a"], ["b"], ["a", "b"], []])
    with pytest.raises(DataError, match=r"row 1: the column 'label' holds several values"):
        read_source(str(tmp_path))


def test_a_table_in_the_folder_of_a_split_gives_that_split(tmp_path):
    for split in ("train", "test"):
        put(tmp_path, *(f"{split}/x/{name}" for name in NAMES))
        (tmp_path / split / "metadata.csv").write_text(PLAIN.replace("\n", "\nx/").removesuffix("x/"))
    source = read_source(str(tmp_path))
    assert [(photo.file, photo.split) for photo in source.photos] == [
        (f"{split}/x/{name}", split) for split in ("test", "train") for name in NAMES
    ]
    assert source.left_out == ()
    (tmp_path / "test" / "metadata.csv").unlink()
    source = read_source(str(tmp_path))
    assert {photo.split for photo in source.photos} == {"train"}
    assert source.left_out == tuple(f"test/x/{name} (not in train/metadata.csv)" for name in NAMES)


def test_one_table_for_the_folders_of_several_splits_gives_those_splits(tmp_path):
    names = [f"images/{split}/{name}" for split in ("train", "val") for name in NAMES]
    put(tmp_path, *names, "images/new/5.png")
    rows = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(names)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    assert [photo.split for photo in read_source(str(tmp_path)).photos] == ["train"] * 4 + ["validation"] * 4
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows, "images/new/5.png,a"]))
    with pytest.raises(DataError, match=r"1 photo without a split beside .*, such as 'images/new/5.png'"):
        read_source(str(tmp_path))


def test_folders_that_only_look_like_splits_need_a_column_split(tmp_path):
    put(tmp_path, "train_images/1.png", "test_images/2.png", "other/3.png")
    rows = ["train_images/1.png,a", "test_images/2.png,b", "other/3.png,a"]
    table = tmp_path / "metadata.csv"
    table.write_text("\n".join(["file_name,label", *rows]))
    with pytest.raises(DataError, match=r"look like splits, test_images and train_images, .* add a column split"):
        read_source(str(tmp_path))
    table.write_text("\n".join(["file_name,label,split", *(f"{row},train" for row in rows)]))
    assert {photo.split for photo in read_source(str(tmp_path)).photos} == {"train"}
    table.write_text("\n".join(["file_name,label", *rows[1:]]))
    assert {photo.split for photo in read_source(str(tmp_path)).photos} == {""}


def test_two_tables_for_the_same_photos_are_refused(tmp_path):
    put(tmp_path, *NAMES)
    (tmp_path / "metadata.csv").write_text(PLAIN)
    (tmp_path / "metadata.jsonl").write_text("\n".join(LINES))
    with pytest.raises(DataError, match=r"'1.png' is in both metadata.csv and metadata.jsonl; keep one of them"):
        read_source(str(tmp_path))


def test_a_photo_in_a_format_that_is_not_read_is_counted_once(tmp_path):
    put(tmp_path, *NAMES, "5.gif")
    (tmp_path / "metadata.csv").write_text(PLAIN + "5.gif,b\n")
    source = read_source(str(tmp_path))
    assert labels(source) == PLAIN_ROWS
    assert source.left_out == ("5.gif (GIF is not read here; convert it to JPEG or PNG)",)


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.jsonl", "labels.parquet", "metadata.csv"])
def test_a_table_may_be_the_data_set_itself(name, tmp_path):
    put(tmp_path, *(f"near/{each}" for each in NAMES[:2]), *(f"far/{each}" for each in NAMES[2:]), "far/5.png")
    paths = ["1.png", f"{tmp_path}/near/2.png", "../far/3.png", f"{tmp_path}/far/4.png"]
    table = tmp_path / "near" / name
    if name.endswith("parquet"):
        put_parquet(table, file_name=paths, label=list("abab"))
    elif name.endswith("jsonl"):
        table.write_text(
            "\n".join(json.dumps({"file_name": p, "label": c}) for p, c in zip(paths, "abab", strict=True))
        )
    else:
        rows = [f"{path},{label}" for path, label in zip(paths, "abab", strict=True)]
        table.write_text("\n".join(["file_name,label", *rows]).replace(",", "\t" if name.endswith("tsv") else ","))
    source = read_source(str(table))
    far = f"{tmp_path}/far"
    assert labels(source) == [("1.png", "a"), ("2.png", "b"), (f"{far}/3.png", "a"), (f"{far}/4.png", "b")]
    for row, path in zip(source.images, ["near/1.png", "near/2.png", "far/3.png", "far/4.png"], strict=True):
        assert os.path.samefile(row["image"]["path"], tmp_path / path)
    assert source.left_out == (f"1 photo beside those in {name}, such as {far}/5.png",)


def test_a_file_that_is_no_table_of_paths_says_what_to_do(tmp_path):
    put(tmp_path, "images/1.png", "labels.xlsx")
    with pytest.raises(DataError, match=r"labels.xlsx' is a spreadsheet; save it as CSV UTF-8"):
        read_source(str(tmp_path / "labels.xlsx"))
    (tmp_path / "labels.csv").write_text("file_name,label\n1.png,a\n")
    with pytest.raises(DataError, match=r"1 missing photo, such as '1.png' .* relative to the folder of the table"):
        read_source(str(tmp_path / "labels.csv"))
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(DataError, match=r"labels.json' is neither a COCO file nor an export of Label Studio"):
        read_source(str(tmp_path / "labels.json"))
    (tmp_path / "labels.json").write_text('{"images": ' + "9" * 5000 + "}")
    with pytest.raises(DataError, match=r"labels.json' cannot be read as JSON"):
        read_source(str(tmp_path / "labels.json"))


def test_a_parquet_file_with_the_photos_inside_is_no_table_of_paths(tmp_path):
    path = tmp_path / "labels.parquet"
    put_parquet(path, file_name=pyarrow.array(NAMES).dictionary_encode(), label=list("abab"))
    assert is_label_file(path, None) and not is_label_file(path, "label_2")
    put_parquet(path, file_name=NAMES, label=list("abab"), image=[{"bytes": b"", "path": name} for name in NAMES])
    assert not is_label_file(path, None)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"cannot be read as parquet"):
        is_label_file(path, None)


def test_photos_outside_the_folder_are_not_read_through_its_own_table(tmp_path):
    put(tmp_path, "in/1.png", "out/2.png")
    for path in ("../out/2.png", f"{tmp_path}/out/2.png"):
        (tmp_path / "in" / "metadata.csv").write_text(f"file_name,label\n{tmp_path}/in/1.png,a\n{path},b\n")
        with pytest.raises(
            DataError, match=r"1 missing photo, .*\(line 3\); that file is hidden, elsewhere or no photo"
        ):
            read_source(str(tmp_path / "in"))


def test_a_table_of_files_and_splits_is_read_cell_by_cell_as_it_is(tmp_path):
    (tmp_path / "splits.csv").write_text('file,label,split,group\n" 1.png",a,train,\n2 .png,b,test,\n')
    assert read_table(tmp_path / "splits.csv", ["file", "split"]) == [
        {"file": " 1.png", "split": "train"},
        {"file": "2 .png", "split": "test"},
    ]
    with pytest.raises(DataError, match=r"needs rows with the columns file,part; it has \['file', 'label', "):
        read_table(tmp_path / "splits.csv", ["file", "part"])
