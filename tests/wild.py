"""Files as people have them: generators of the situations that users report.

A situation makes small files in a folder and states what is right: what is read from them, or the
sentence that refuses them. The tests in `test_wild_*.py` go through the tables at the end of each
section. To add a situation, write a function `make(folder) -> word` and add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image


class Situation(NamedTuple):
    """Files, and what is right.

    Attributes:
      name: the situation, unique within its section.
      make: writes the files into an empty folder and returns what a user would type: a path, or a
        word such as "folder:DIR".
      refused: regular expression that the one-sentence error matches; "" if the files are read.
      remark: regular expression that one remark matches; "" if there must be no remark.
      right: section-specific values, such as the classes and the number of images in each part.
    """

    name: str
    make: Callable[[Path], Any]
    refused: str = ""
    remark: str = ""
    right: Mapping[str, Any] = {}


# ---- weights files -------------------------------------------------------------------------------

WEIGHTS: tuple[Situation, ...] = ()


# ---- folders and names of classes ----------------------------------------------------------------

FOLDERS: tuple[Situation, ...] = ()


# ---- tables (CSV) --------------------------------------------------------------------------------

CSV_IMAGES = tuple(f"images/{label}/{i}.png" for label in ("round", "square") for i in range(3))


def csv_table(
    header: str = "path,label",
    row: str = "{path},{label}",
    *,
    values: Sequence[str] = ("",) * 6,
    more: Sequence[str] = (),
    first: str = "",
    newline: str = "\r\n",
    encoding: str = "utf-8",
    images: Sequence[str] = CSV_IMAGES,
    start: bytes = b"",
) -> Callable[[Path], str]:
    """A generator of a table of six images in `images/round` and `images/square`.

    Args:
      header: the line with the names of the columns; none if it is empty.
      row: a line per image, with `{path}`, `{label}`, `{value}`, `{stem}` (the path without ending)
        and `{back}` (the path with backslashes).
      values: `{value}` of each image.
      more: lines after those of the images.
      first: a line before the header.
      newline, encoding: of the text.
      images: the files that are written.
      start: bytes before the text.
    """

    def make(folder: Path) -> str:
        for i, name in enumerate(images):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), i).save(folder / name, "PNG")
        rows = [
            row.format(
                path=path,
                label=path.split("/")[1],
                value=value,
                stem=path.removesuffix(".png"),
                back=path.replace("/", "\\"),
                folder=folder,
            )
            for path, value in zip(CSV_IMAGES, values, strict=True)
        ]
        lines = [*filter(None, (first, header)), *rows, *more]
        text = "".join(line + newline for line in lines)
        (folder / "table.csv").write_bytes(start + text.encode(encoding))
        return f"csv:{folder / 'table.csv'}"

    return make


def _renamed(names: Mapping[str, str]) -> tuple[str, ...]:
    """The images of a table with other names of files."""
    return tuple(names.get(name, name) for name in CSV_IMAGES)


_HALF = {"parts": {"train": 4, "validation": 2}}
_VALID = ("False", "False", "True") * 2
_NFC, _NFD = "caf\u00e9", "cafe\u0301"

TABLES: tuple[Situation, ...] = (
    # Encodings, lines and delimiters of spreadsheets.
    Situation("plain", csv_table()),
    Situation("carriage returns", csv_table(newline="\r")),
    Situation("no line end at the end and empty lines", csv_table(newline="\n", more=("", " , "))),
    Situation("UTF-8 mark", csv_table(encoding="utf-8-sig")),
    Situation("UTF-16 little", csv_table(encoding="utf-16-le", start=b"\xff\xfe")),
    Situation("UTF-16 big", csv_table(encoding="utf-16-be", start=b"\xfe\xff")),
    Situation(
        "Unicode text of Excel",
        csv_table("path\tlabel", "{path}\t{label}", encoding="utf-16-le", start=b"\xff\xfe"),
    ),
    Situation("UTF-32", csv_table(encoding="utf-32-le", start=b"\xff\xfe\0\0")),
    Situation(
        "UTF-16 without a mark",
        csv_table(encoding="utf-16-le"),
        refused="has bytes of value 0, as UTF-16 without its mark has, .* save it as 'CSV UTF-8'$",
    ),
    Situation(
        "cut UTF-16",
        csv_table("path,label ", start=b"\xff\xfe"),
        refused="begins with the mark of UTF-16 but cannot be decoded: .*; save it as 'CSV UTF-8'$",
    ),
    Situation(
        "cp1252",
        csv_table(
            row="{path},{value}", values=["caf\u00e9"] * 3 + ["th\u00e9"] * 3, encoding="cp1252"
        ),
        refused="is not in UTF-8: byte 0xE9 in line 2, in a cell that reads 'caf\u00e9' in cp1252 "
        "of Windows; save it as 'CSV UTF-8'$",
    ),
    Situation(
        "Mac Roman",
        csv_table(
            row="{path},{value}",
            values=["a", "a", "n\u00fc", "b", "b", "b"],
            encoding="mac-roman",
            newline="\r",
        ),
        refused="is not in UTF-8: byte 0x9F in line 4, in a cell that reads 'n\u0178' in cp1252",
    ),
    Situation("sep=;", csv_table("path;label", "{path};{label}", first="sep=;")),
    Situation("quoted sep", csv_table("path;label", "{path};{label}", first='"sep=;"')),
    Situation("sep=, with empty cells", csv_table(first="sep=,,,")),
    Situation("SEP=|", csv_table("path|label", "{path}|{label}", first="SEP=|")),
    Situation(
        "sep=; with a mark",
        csv_table("path;label", "{path};{label}", first="sep=;", encoding="utf-8-sig"),
    ),
    Situation("semicolons", csv_table("path;label", "{path};{label}")),
    Situation("tabs", csv_table("path\tlabel", "{path}\t{label}")),
    Situation("vertical bars", csv_table("path|label", "{path}|{label}")),
    Situation(
        "semicolons and more commas",
        csv_table("path;label;a,b,c,d", "{path};{label};1,2,3,4"),
    ),
    Situation("spaces after commas", csv_table("path, label", '{path}, "{label}"')),
    Situation("trailing empty columns", csv_table("path,label,,,", "{path},{label},,,")),
    Situation("empty cells without a column", csv_table(row="{path},{label},,")),
    Situation(
        "index column", csv_table(",path,label", "{value},{path},{label}", values=tuple("012345"))
    ),
    Situation(
        "row numbers of R",
        csv_table('"path","label"', '"{value}","{path}","{label}"', values=tuple("123456")),
    ),
    Situation(
        "quoted commas and quotes",
        csv_table(row='"{path}","{label}, ""big"""'),
        right={"classes": ('round, "big"', 'square, "big"')},
    ),
    Situation("names of columns in capitals", csv_table(" PATH , Label ")),
    Situation(
        "unquoted comma in a label",
        csv_table(row="{path},{label}, big"),
        refused="has 3 cells in line 2, expected 2: 'big' has no column; put cells that ",
    ),
    Situation(
        "open quote",
        csv_table(more=('"x.png,round',)),
        refused="is not valid CSV: unexpected end of data in line 8, expected cells with commas",
    ),
    Situation(
        "Excel workbook",
        csv_table(start=b"PK\x03\x04\x14\0"),
        refused="is an Excel workbook .\\.xlsx. or another zip archive, expected a CSV file",
    ),
    Situation(
        "old Excel workbook",
        csv_table(start=b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
        refused="is an Excel workbook of the old format .\\.xls., expected a CSV file; export it",
    ),
    Situation(
        "Parquet", csv_table(start=b"PAR1"), refused="is a Parquet file, expected a CSV file"
    ),
    Situation(
        "JSON lines",
        csv_table("", '{{"path": "{path}", "label": "{label}"}}'),
        refused="is a JSON file, expected a CSV file; export it as CSV in UTF-8",
    ),
    Situation("web page", csv_table(first="<!DOCTYPE html>"), refused="is an HTML or XML file"),
    # Names of columns.
    Situation(
        "no names of columns",
        csv_table(""),
        refused="has no line with the names of its columns: line 1 has the image "
        "'images/round/0.png'; add a first line such as path,label",
    ),
    Situation(
        "no names of columns and semicolons",
        csv_table("", "{label};{path}"),
        refused="line 1 has the image 'images/round/0.png'; add a first line such as path;label",
    ),
    *(
        Situation(
            f"columns {path} and {label}",
            csv_table(f"{path},{label}"),
            remark=f"^the table has no column path and no column label; read '{path}' as path and "
            f"'{label}' as label$",
        )
        for path, label in (
            ("filename", "class"),
            ("file", "category"),
            ("Image", "Target"),
            ("image_path", "label_name"),
            ("FilePath", "Class Name"),
            ("fname", "labels"),
            ("id", "class_id"),
            ("name", "category_id"),
        )
    ),
    Situation(
        "path and category",
        csv_table("path,category"),
        remark="^the table has no column label; read 'category' as label$",
    ),
    Situation(
        "index and file name",
        csv_table("id,filename,label", "{value},{path},{label}", values=tuple("012345")),
        remark="^the table has no column path; read 'filename' as path$",
    ),
    Situation(
        "two paths",
        csv_table("file,image,label", "{path},{path},{label}"),
        refused="has no column 'path', and 'file' and 'image' may both be it, expected one",
    ),
    Situation(
        "two labels by name",
        csv_table("path,class,category", "{path},{label},{label}"),
        refused="has no column 'label', and 'class' and 'category' may both be it, expected one",
    ),
    Situation(
        "one column per class",
        csv_table("path,round,square", "{path},1,0"),
        refused="has no column 'label', expected path and label in its first line; its columns: "
        "'path', 'round', 'square'$",
    ),
    *(
        Situation(
            f"{twice} twice in {header}",
            csv_table(header, "{path},{label},{label}"),
            refused=f"has the column '{twice}' twice .columns {columns}., expected each name once",
        )
        for header, twice, columns in (
            ("path,label,label", "label", "2 and 3"),
            ("path,label,Label", "Label", "2 and 3"),
            ("label,label,path", "label", "1 and 2"),
            ("path,label, path ", "path", "1 and 3"),
            ("path,label,split,split", "split", "3 and 4"),
            ("path,label,x,x", "x", "3 and 4"),
        )
    ),
    # Parts.
    *(
        Situation(
            f"parts in {column} of {values[2]}",
            csv_table(f"path,label,{column}", "{path},{label},{value}", values=values),
            remark=f"^the parts are read from '{column}': 4 train, 2 validation, 0 test$",
            right=_HALF,
        )
        for column, values in (
            ("is_valid", _VALID),
            ("is_valid", ("0", "0", "1") * 2),
            ("is valid", ("no", "no", "yes") * 2),
            ("set", ("train", "Train", "val") * 2),
            ("subset", ("training", "train", "valid") * 2),
            ("partition", ("TRAIN", "train", "dev") * 2),
            ("phase", ("train", "train", "validation") * 2),
            ("fold", ("train", "train", "val") * 2),
        )
    ),
    Situation(
        "is_valid and is_test",
        csv_table(
            "path,label,is_valid,is_test",
            "{path},{label},{value}",
            values=("0,0", "1,0", "0,1") * 2,
        ),
        remark="^the parts are read from 'is_valid' and 'is_test': 2 train, 2 validation, 2 test$",
        right={"parts": {"train": 2, "validation": 2, "test": 2}},
    ),
    *(
        Situation(
            f"split of {words[2]}",
            csv_table("path,label,split", "{path},{label},{value}", values=words * 2),
            right=_HALF,
        )
        for words in (
            ("train", "train", "valid"),
            ("training", "train", "Dev"),
            ("TRAIN", "Training", " validation "),
            ("train", "train", "VAL"),
        )
    ),
    Situation(
        "misspelled split",
        csv_table(
            "path,label,split", "{path},{label},{value}", values=("train", "train", "tset") * 2
        ),
        refused="has the split 'tset' in line 4, 7, expected train, validation or test; nearest: "
        "'test'",
    ),
    Situation(
        "two columns of parts",
        csv_table("path,label,set,phase", "{path},{label},{value},train", values=("train",) * 6),
        refused="has the columns 'set' and 'phase' with parts, expected one; name it split",
    ),
    *(
        Situation(
            f"{column} of {values[0]}",
            csv_table(f"path,label,{column}", "{path},{label},{value}", values=values),
            remark=f"^the column '{column}' is not used: {end}$",
        )
        for column, values, end in (
            ("fold", tuple("012012"), "parts are read from a column split with train, .*"),
            ("set", tuple("ABABAB"), "parts are read from a column split with train, .*"),
            ("is_valid", ("yes", "maybe") * 3, "parts are read from a column split .*"),
            ("is_train", ("True", "False") * 3, "parts are read from a column split .*"),
            ("weight", ("0.5",) * 6, "the probability that a label is correct is read from .*"),
            ("Patient ID", tuple("ppqqrr"), "images of one group may be in different parts; .*"),
            ("label_2", tuple("aabbcc"), "each image has one label"),
            ("label.1", tuple("aabbcc"), "each image has one label"),
            ("category", tuple("aabbcc"), "each image has one label"),
            ("bbox", ("1 2 3 4",) * 6, "whole images are read; crop them .*"),
        )
    ),
    Situation(
        "split and fold",
        csv_table("path,label,split,fold", "{path},{label},train,{value}", values=tuple("012012")),
        remark="^the column 'fold' is not used: parts are read from a column split",
        right={"parts": {"train": 6}},
    ),
    Situation(
        "columns without a meaning", csv_table("path,label,width,note", "{path},{label},8,x")
    ),
    # Labels.
    *(
        Situation(
            f"labels {one} and {other}",
            csv_table(row="{path},{value}", values=[one, "7", one, "7", "7", other]),
            refused=f"has the labels '{one}' in line 2 and '{other}' in line 7, which are the same "
            "number, expected one spelling of each class",
        )
        for one, other in (("1", "1.0"), ("1", "01"), ("1.0", "1.00"), ("-1", "-1.0"), ("0", "-0"))
    ),
    Situation(
        "labels of numbers",
        csv_table(row="{path},{value}", values=("10", "9", "-1", "10", "9", "-1")),
        right={"classes": ("-1", "9", "10")},
    ),
    *(
        Situation(
            f"label in two Unicode forms: {name}",
            csv_table(row="{path},{value}", values=(name, other, "dog") * 2),
            remark=f"^4 lines have the label '{name}', in several Unicode forms: each is read as",
            right={"classes": tuple(sorted((name, "dog")))},
        )
        for name, other in (
            (_NFC, _NFD),
            ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"),
            ("\ud55c\uae00", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
            ("\u304c", "\u304b\u3099"),
            ("Espa\u00f1a", "Espan\u0303a"),
        )
    ),
    Situation(
        "labels in NFD",
        csv_table(row="{path},{value}", values=(_NFD, _NFD, "dog") * 2),
        right={"classes": (_NFC, "dog")},
    ),
    *(
        Situation(
            f"labels {one!r} and {other!r}",
            csv_table(row="{path},{value}", values=(one, other, "dog") * 2),
            remark="^the classes .* and .* differ only in letter case, space or width and",
            right={"classes": tuple(sorted((one, other, "dog")))},
        )
        for one, other in (
            ("cat", "Cat"),
            ("big cat", "big  cat"),
            ("big cat", "big\u00a0cat"),
            ("big cat", "big_cat"),
            ("cat", "c\u200bat"),
            ("cat", "\uff43at"),
        )
    ),
    *(
        Situation(
            f"label with {name} around it",
            csv_table(row='{path},"{value}"', values=("cat", other, "dog") * 2),
            remark="^some lines have spaces around the label 'cat' and others do not: each is read",
            right={"classes": ("cat", "dog")},
        )
        for name, other in (("a space", "cat "), ("a fixed space", "\u00a0cat"), ("a tab", "cat\t"))
    ),
    Situation(
        "spaces around all labels",
        csv_table(row='{path}," {label} "'),
    ),
    Situation(
        "empty label",
        csv_table(row="{path},{value}", values=("a", "b", "", "b", " ", "b")),
        refused="has no label in line 4, 6, expected a label in each",
    ),
    *(
        Situation(
            f"label {word}",
            csv_table(row="{path},{value}", values=("a", "b", word, "b", "a", "b")),
            refused=f"has the label '{word}' in line 4, expected a label in each",
        )
        for word in ("#N/A", "#REF!", "#VALUE!")
    ),
    *(
        Situation(
            f"label {word}",
            csv_table(row="{path},{value}", values=("a", "b", word, "b", "a", word)),
            remark=f"^2 lines have the label '{word}', read as a class; remove these lines if the",
            right={"classes": tuple(sorted(("a", "b", word)))},
        )
        for word in ("nan", "NULL", "None")
    ),
    Situation(
        "several labels in a cell",
        csv_table(row="{path},{value}", values=("a", "b", "a|b", "b", "a", "b")),
        remark="^1 labels contain . or ;, such as 'a.b': each text is read as one class",
        right={"classes": ("a", "a|b", "b")},
    ),
    Situation(
        "one label",
        csv_table(row="{path},round"),
        refused="has 1 labels in 6 lines .'round'., expected at least two classes",
    ),
    # Images under two labels, and listed twice.
    Situation(
        "one image under two labels",
        csv_table(more=("images/round/0.png,square",)),
        refused="has 1 image under two labels, such as '.*images/round/0.png' with 'round' in line "
        "2 and 'square' in line 8, expected one label per image; keep one of the lines",
    ),
    Situation(
        "three images under two labels",
        csv_table(more=[f"images/round/{i}.png,square" for i in range(3)]),
        refused="has 3 images under two labels, such as '.*images/round/0.png' with 'round' in",
    ),
    Situation(
        "two paths of one image under two labels",
        csv_table(more=("./images/../images/round/1.png,square",)),
        refused="has 1 image under two labels, such as '.*round/1.png' with 'round' in line 3 and",
    ),
    Situation(
        "image listed twice",
        csv_table(more=("images/round/0.png,round", ".\\images\\round\\1.png,round")),
        remark="^2 images are listed more than once, and each line counts as an image: "
        "'.*round/0.png' in lines 2 and 8$",
        right={"n": 8},
    ),
    Situation(
        "image in two parts",
        csv_table(
            "path,label,split",
            "{path},{label},train",
            more=("images/round/0.png,round,test",),
        ),
        remark="^1 images are listed in more than one part, as they are given: '.*0.png' in",
        right={"n": 7, "parts": {"train": 6, "test": 1}},
    ),
    # Confidence.
    Situation(
        "decimal commas",
        csv_table(
            "path;label;confidence", "{path};{label};{value}", values=("0,75", "1", "0,5") * 2
        ),
        right={"confidence": (0.75, 1.0, 0.5) * 2},
    ),
    Situation(
        "quoted decimal commas",
        csv_table(
            "path,label,confidence", '{path},{label},"{value}"', values=("0,75", "1,0", ".5") * 2
        ),
        right={"confidence": (0.75, 1.0, 0.5) * 2},
    ),
    *(
        Situation(
            f"confidence {value!r}",
            csv_table(
                "path;label;confidence", "{path};{label};{value}", values=("1", value, "1") * 2
            ),
            refused=f"has the confidence '{value}' in line 3, 6, expected a number in .0, 1.",
        )
        for value in ("75 %", "0", "1,5", "", "high", "nan", "1.000,5")
    ),
    # Paths.
    Situation("backslashes", csv_table(row="{back},{label}")),
    Situation("dot and backslash", csv_table(row=".\\{back},{label}")),
    Situation("dot and slash", csv_table(row="./{path},{label}")),
    Situation("absolute paths", csv_table(row="{folder}/{path},{label}")),
    Situation("file addresses", csv_table(row="file://{folder}/{path},{label}")),
    Situation(
        "file addresses with a host", csv_table(row="file://localhost{folder}/{path},{label}")
    ),
    Situation(
        "file addresses with escapes",
        csv_table(
            row="file:{folder}/{value},{label}",
            values=("images/round/a%20b.png", *CSV_IMAGES[1:]),
            images=_renamed({CSV_IMAGES[0]: "images/round/a b.png"}),
        ),
    ),
    *(
        Situation(
            f"paths below {start}",
            csv_table(row=f"{start}{{{kind}}},{{label}}"),
            remark="^6 absolute paths of another machine are read below the folder of the table: "
            "'.*' as 'images/round/0.png'$",
        )
        for start, kind in (
            ("C:\\data\\", "back"),
            ("d:/my data/", "path"),
            ("file:///C:/data/", "path"),
            ("\\\\server\\share\\", "back"),
            ("/home/ann/data/", "path"),
            ("C:\\", "back"),
        )
    ),
    *(
        Situation(
            f"paths of Windows that are not here: {path}",
            csv_table(more=(f"{path},round",)),
            refused="has the path of Windows '.*' in line 8, expected an image in each; paths are "
            "relative to the folder of the table$",
        )
        for path in ("C:\\data\\images\\round\\9.png", "d:/9.png", "\\\\server\\share\\9.png")
    ),
    Situation(
        "missing image",
        csv_table(more=("images\\round\\9.png,round",)),
        refused=r"has no image at 'images\\round\\9.png' in line 8, expected an image in each",
    ),
    Situation(
        "folder instead of an image",
        csv_table(more=("images/round,round",)),
        refused="has no image at 'images/round' in line 8",
    ),
    Situation(
        "web address",
        csv_table(more=("https://example.org/9.png,round",)),
        refused="has the address 'https://example.org/9.png' instead of a file in line 8, expected",
    ),
    Situation(
        "paths without endings",
        csv_table(row="{stem},{label}"),
        remark="^6 paths without an ending are read as the image of that name: 'images/round/0' as "
        "'images/round/0.png'$",
    ),
    Situation(
        "path without an ending and a file of another kind",
        csv_table(row="{stem},{label}", images=(*CSV_IMAGES, "images/round/0.txt")),
        remark="^6 paths without an ending are read as the image of that name: 'images/round/0' as",
    ),
    Situation(
        "path without an ending and two images",
        csv_table(row="{stem},{label}", images=(*CSV_IMAGES, "images/round/0.jpg")),
        refused="has the path 'images/round/0', which may be '0.jpg' and '0.png', in line 2",
    ),
    Situation(
        "paths in another letter case",
        csv_table(row="{value},{label}", values=[path.upper() for path in CSV_IMAGES]),
        remark="^6 paths are read as files of another letter case or Unicode form: 'IMAGES/.*' as",
    ),
    Situation(
        "path in another Unicode form",
        csv_table(
            row="{value},{label}",
            values=(f"images/round/{_NFC}.png", *CSV_IMAGES[1:]),
            images=_renamed({CSV_IMAGES[0]: f"images/round/{_NFD}.png"}),
        ),
        remark="^1 paths are read as files of another letter case or Unicode form: '.*' as '.*'$",
    ),
    Situation(
        "path that two files fit",
        csv_table(
            row="{value},{label}",
            values=("images/round/A.PNG", *CSV_IMAGES[1:]),
            images=(*CSV_IMAGES, "images/round/a.png", "images/round/A.png"),
        ),
        refused="has the path 'images/round/A.PNG', which may be 'A.png' and 'a.png', in line 2",
    ),
    Situation(
        "a path of 5,000 characters", csv_table(more=("x" * 5000 + ".png,round",)), refused="no im"
    ),
)


# ---- pixels and formats --------------------------------------------------------------------------

PIXELS: tuple[Situation, ...] = ()


# ---- terminal, disk and other surroundings -------------------------------------------------------

SURROUNDINGS: tuple[Situation, ...] = ()
