"""Names from outside are shown as names, and what is read from outside is bounded."""

import csv
import io
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crate_mm.io.untrusted import (
    check_plain,
    public,
    read_json,
    read_regular,
    sanitized,
    sanitized_lines,
    spreadsheet_cell,
    without_secrets,
)


@pytest.mark.parametrize(
    ("name", "as_shown"),
    [
        ("n01440764", "n01440764"),
        ("café.jpg", "café.jpg"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nerror: all is well", r"a\nerror: all is well"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("caf\udce9.png", r"caf\udce9.png"),
    ],
)
def test_a_name_is_shown_on_one_line_without_what_a_terminal_acts_on(name, as_shown):
    assert sanitized(name) == as_shown


@pytest.mark.parametrize(
    ("text", "for_others"),
    [
        ("configs/crate_tiny.py", "configs/crate_tiny.py"),
        ("/home/alice/my runs/epoch 1.pth", "epoch 1.pth"),
        ("~/runs/", "runs"),
        ("--out=/home/alice/my runs/page.html", "--out=page.html"),
        ("data.roots=['/home/al ice/x', 'a/b',/home/alice/y]", "data.roots=['x', 'a/b',y]"),
        ("https://alice:pass@word@host.example/w.pth?X-Amz-Signature=S/E.C=1#x", "https://host.example/w.pth"),
        ("load_from=https://host.example/w.pth?Signature=SECRET", "load_from=https://host.example/w.pth"),
        ("hf://owner/repo/w.pth@main", "hf://owner/repo/w.pth@main"),
        ("https://host/w.pth#sha256=0123", "https://host/w.pth#sha256=0123"),
        ("C:\\alice\\w.pth", "w.pth"),
        ("~alice/my runs/w.pth", "w.pth"),
        ("file:///home/alice/w.pth", "w.pth"),
        ('{"file": "/home/al ice/w.pth", "rate": 1/2}', '{"file": "w.pth", "rate": 1/2}'),
        (
            "begun from https://host/a?s=1 and /home/alice/b.pth, not from c/d",
            "begun from https://host/a and b.pth, not from c/d",
        ),
    ],
)
def test_what_others_read_has_no_folders_of_the_user_and_no_signature(text, for_others):
    assert public(text) == for_others
    assert public({"a": [text, 1]}) == {"a": [for_others, 1]}


def test_a_files_relative_path_loses_its_folders_for_others():
    data = {"file": "secret/w.pth", "files": {"of": ["a/b.pth", None]}, "other": "a/b"}
    expected = {"file": "w.pth", "files": {"of": ["b.pth", None]}, "other": "a/b"}
    assert public(data, files=("file", "files")) == expected


@given(st.text())
def test_what_is_shown_is_printable_and_can_be_encoded(text):
    assert all(c.isprintable() or c == " " or ord(c) > 127 for c in sanitized(text))
    sanitized(text).encode()
    assert "\n" not in sanitized(text)
    assert "\x1b" not in sanitized_lines(text)


@pytest.mark.parametrize(
    ("text", "as_told"),
    [
        ("https://host/w.pth?X-Signature=a%2Fb&c=d", "https://host/w.pth"),
        ("https://me:word@host:8/w.pth: it is", "https://host:8/w.pth: it is"),
        ("from https://host/w.pth?a=b, and 's3://key:word@c/d?e', end", "from https://host/w.pth, and 's3://c/d', end"),
        ("https://host/w.pth?a=b#sha256=0123", "https://host/w.pth#sha256=0123"),
        ("hf://me/model@v2/w.pth", "hf://me/model@v2/w.pth"),
        ("what? a/path@home?x=y", "what? a/path@home?x=y"),
    ],
)
def test_an_address_is_told_without_user_and_query(text, as_told):
    assert without_secrets(text) == as_told


def test_a_long_name_is_cut():
    assert len(sanitized("y" * 5_000_000)) < 260
    assert "(5000000 characters)" in sanitized("y" * 5_000_000)
    assert len(sanitized_lines("y" * 5_000_000)) < 25_000


@given(st.text(min_size=1, max_size=20))
def test_no_cell_is_a_formula(text):
    file = io.StringIO()
    csv.writer(file).writerow([spreadsheet_cell(text)])
    (cell,) = next(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert not cell.strip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))


def test_numbers_stay_numbers():
    assert spreadsheet_cell(-1.5) == -1.5
    assert spreadsheet_cell("tabby") == "tabby"
    assert spreadsheet_cell("-1") == "'-1"


def test_devices_and_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    start = time.perf_counter()
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="is not a regular file"):
            read_regular(tmp_path / name, 10)
    assert time.perf_counter() - start < 5
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(OSError, match="has 11 bytes, more than the limit of 10"):
        read_regular(tmp_path / "large", 10)
    (tmp_path / "right").write_bytes(b"right")
    assert read_regular(tmp_path / "right", 10) == b"right"


def test_deep_json_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json("[" * 200_000)
    assert read_json(b'{"a": [1]}') == {"a": [1]}


def laughs(levels: int) -> list:
    value = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def cycle() -> list:
    value: list = []
    value.append(value)
    return value


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (laughs(40), "more than 10,000 values"),
        (cycle(), "more than 64 deep"),
        (deep(100_000), "more than 64 deep"),
        ({1: 2}, "a key of type int, expected a string"),
        ({"a": {1, 2}}, "holds set, which is not plain data"),
        ([object()], "holds object"),
    ],
    ids=["shared lists", "a list in itself", "deep lists", "keys", "a set", "an object"],
)
def test_what_is_no_plain_data_of_a_bounded_size_is_refused(value, reason):
    with pytest.raises(ValueError, match=reason):
        check_plain(value, max_values=10_000)


def test_plain_data_is_taken():
    check_plain({"model": {"sizes": (1, 2.5, None, True), "names": ["a"] * 1000}})
