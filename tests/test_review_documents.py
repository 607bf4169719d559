import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.review.documents import Library, find_files, kinds_read, read_folder
from examples.review.extract import KINDS, decode, html_text, python_text, readable

REPOSITORY = Path(__file__).parent.parent


def write(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def names(library: Library) -> dict[str, str]:
    return {notice["path"]: notice["name"] for notice in library.notices}


def test_reads_documents_in_order_with_titles_and_words(tmp_path: Path) -> None:
    write(
        tmp_path,
        b_dot_md="# The second\n\nThree more words.\n",
        a__deep_dot_rst="The first\n=========\n\nBody text.\n",
        plain_dot_txt="no heading here",
    )
    library = read_folder(tmp_path)
    assert [(d.path, d.title, d.words) for d in library.documents] == [
        ("a/deep.rst", "The first", 4),
        ("b.md", "The second", 5),
        ("plain.txt", "plain.txt", 3),
    ]
    assert library.files == ("a/deep.rst", "b.md", "plain.txt")
    assert library.texts()["plain.txt"] == "no heading here"
    assert library.notices == ()


def test_only_selects_by_pattern_but_knows_all_files(tmp_path: Path) -> None:
    write(tmp_path, README_dot_md="# a", docs__x__y_dot_md="# b", src__z_dot_py='"""Doc."""', logo_dot_png=b"\0")
    library = read_folder(tmp_path, only=["README.md", "docs/*"])
    assert [d.path for d in library.documents] == ["README.md", "docs/x/y.md"]
    assert set(library.files) == {"README.md", "docs/x/y.md", "src/z.py", "logo.png"}
    assert library.notices == ()  # what was not asked for is nothing to report


def test_hidden_folders_and_environments_are_passed_over(tmp_path: Path) -> None:
    write(
        tmp_path,
        keep_dot_md="# keep",
        _dot_git__config_dot_md="# no",
        venv__lib_dot_md="# no",
        node_modules__x_dot_md="# no",
        oddly_named__pyvenv_dot_cfg="",
        oddly_named__lib_dot_md="# no",
    )
    assert find_files(tmp_path) == ["keep.md"]


def test_an_oversized_file_is_cut_at_a_line_and_named(tmp_path: Path) -> None:
    write(tmp_path, big_dot_md="one two\n" * 100)
    library = read_folder(tmp_path, max_bytes=20)
    assert library.documents[0].text == "one two\none two\n"
    assert library.notices == ({"path": "big.md", "name": "oversized", "detail": "read the first 20 of 800 bytes"},)


def test_files_that_cannot_be_read_as_text_are_listed(tmp_path: Path) -> None:
    write(
        tmp_path,
        good_dot_md="# good",
        image_dot_png=b"\x89PNG\0\0",
        fake_dot_md=b"MZ\0\0\0",
        latin_dot_txt="café".encode("latin-1"),
        empty_dot_md="  \n",
        data_dot_json="{}",
    )
    os.symlink(tmp_path / "good.md", tmp_path / "link.md")
    os.mkfifo(tmp_path / "pipe.md")  # opening it would wait for ever
    library = read_folder(tmp_path)
    assert [d.path for d in library.documents] == ["good.md", "latin.txt"]
    assert library.documents[1].text == "caf\ufffd"
    assert names(library) == {
        "image.png": "binary",
        "fake.md": "binary",
        "latin.txt": "undecodable",
        "empty.md": "empty",
        "link.md": "symlink",
        "pipe.md": "unreadable",
    }


def test_a_file_name_in_another_encoding_is_shown(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.md")
    try:
        Path(os.fsdecode(path)).write_text("# text")
    except OSError:
        pytest.skip("this file system takes only valid Unicode names")
    library = read_folder(tmp_path)
    assert [d.path for d in library.documents] == ["caf\ufffd.md"]


@pytest.mark.parametrize("make", [lambda p: p / "nowhere", lambda p: p, lambda p: write(p, f_dot_md="x") / "f.md"])
def test_nothing_to_read_names_the_folder_and_the_kinds(tmp_path: Path, make: object) -> None:
    folder = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"\.md and \.markdown \(Markdown\)") as caught:
        read_folder(folder)
    assert str(folder) in str(caught.value)


def test_the_error_says_what_was_passed_over(tmp_path: Path) -> None:
    write(tmp_path, x_dot_md=b"\0\0")
    with pytest.raises(ValueError, match=r"x\.md: binary, 2 bytes that are no text"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match=r"matching docs/\*"):
        read_folder(tmp_path, only=["docs/*"])


def test_kinds_read_names_every_suffix() -> None:
    assert all(suffix in kinds_read() for suffix in KINDS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_honoured(encoding: str) -> None:
    raw = "Grüße\r\nzwei".encode(encoding)
    assert decode(raw) == ("Grüße\nzwei", False)


def test_a_written_replacement_character_is_no_damage() -> None:
    assert decode("\ufffd".encode()) == ("\ufffd", False)
    assert decode(b"\xff") == ("\ufffd", True)


def test_html_becomes_markdown() -> None:
    html = (
        "<html><head><title>no</title><style>p{}</style></head><body><h2>Head &amp; toe</h2><p>See\n "
        "<a href='x.md'>this</a>.</p><ul><li>one<li>two</ul><pre>a  <b>b</b></pre><script>no()</script></body>"
    )
    assert html_text(html) == "## Head & toe\n\nSee [this](x.md).\n\n- one\n- two\n\n```\na  b\n```\n"


def test_python_docstrings_keep_their_lines() -> None:
    source = '"""Module."""\nimport os\n\n\nclass A:\n    """A class.\n\n    More.\n    """\n\n'
    source += "    def f(self):\n        return 1\n"
    assert python_text(source).split("\n") == [
        "Module.", "", "", "", "## A", "A class.", "", "More.", "", "", "", "", "",
    ]  # fmt: skip


def test_python_that_does_not_parse_or_warns_is_read_all_the_same() -> None:
    assert python_text("def (") == "def ("
    assert python_text('"""Bad \\d escape."""') == "Bad \\d escape."


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.text(st.characters()) | st.text("<>!-[]/ab\"'=&;#\n"))
def test_any_source_is_readable(suffix: str, source: str) -> None:
    assert isinstance(readable(suffix, source), str)


@settings(max_examples=60, deadline=None)
@given(st.binary())
def test_any_bytes_decode(raw: bytes) -> None:
    text, damaged = decode(raw)
    assert isinstance(text, str)
    assert not damaged or "\ufffd" in text


def test_reads_this_repository() -> None:
    library = read_folder(REPOSITORY, only=["examples/review/*.py"])
    by_path = {d.path: d for d in library.documents}
    document = by_path["examples/review/documents.py"]
    assert document.title == document.path
    assert document.text.startswith("Finds and reads the documents of a folder.")
    assert "import os" not in document.text
