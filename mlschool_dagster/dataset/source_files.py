"""Files of data: which ones are read, and what a file is that cannot be.

Belongs here: names, folders, compression, encodings. Does not belong here: rows and columns.
"""

import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from urllib.parse import unquote_to_bytes, urlsplit

from mlschool_dagster.errors import UserError
from mlschool_dagster.storage import location

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".parquet")
"""How the names of files of data end, in letters of either case."""
MAX_LINE = 1024**2
"""Characters in a line of CSV."""

_SIGNATURES = {
    b"PK\x03\x04": "looks like a ZIP archive or an Excel workbook; save the table as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "looks like an old Excel workbook; save the table as CSV in UTF-8",
    b"PAR1": "looks like Parquet; let its name end in .parquet",
    b"\x1f\x8b": "looks compressed with gzip; let its name end in .csv.gz",
    b"BZh": "looks compressed with bzip2; unpack it",
    b"\x28\xb5\x2f\xfd": "looks compressed with Zstandard; unpack it",
    b"\xfd7zXZ": "looks compressed with xz; unpack it",
    b"SQLite": "looks like an SQLite database; export the table as CSV in UTF-8",
    b"\xff\xfe": "looks like UTF-16, which Excel calls Unicode text; save it as CSV in UTF-8",
    b"\xfe\xff": "looks like UTF-16, which Excel calls Unicode text; save it as CSV in UTF-8",
}
"""Signatures (first bytes) of files that are no CSV, with what to do about each."""


@contextmanager
def opened_source(uri: str) -> Iterator[Path]:
    """The file or folder at `uri` (a path, ``file://``, or remote) as a local path, for a block.

    Of what is remote, the files of data are copied into a temporary folder first. Errors in the
    block name the URI, not the copy.

    Raises:
        UserError: the scheme is not supported, or nothing can be read there.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        yield Path(os.fsdecode(unquote_to_bytes(parts.path)))
    elif "://" not in uri:
        yield Path(uri)
    else:
        with TemporaryDirectory() as folder:
            source = location(uri, Path(folder, "cache"), "The data")
            copies = Path(folder, "copies")
            copies.mkdir()
            try:
                is_file = source.exists()
                for file in [source] if is_file else source.children():
                    if is_file or file.name.lower().endswith(SUFFIXES):
                        with suppress(FileNotFoundError):
                            file.local().rename(copies / file.name)
                yield copies / source.name if is_file else copies
            except UserError as error:
                above = source.uri.rpartition("/")[0] if is_file else source.uri
                raise UserError(str(error).replace(str(copies), above)) from None


def shown(path: Path | str) -> str:
    """`path` as text that can be shown and kept: what is no UTF-8 or ends a line is replaced."""
    return re.sub(r"[\x00-\x1f\x7f]", "\ufffd", os.fsencode(path).decode("utf-8", "replace"))


def data_files(source: Path) -> list[Path]:
    """The file at `source`, or the files of data in that folder in order of name.

    Raises:
        UserError: there are none.
    """
    try:
        if not source.is_dir():
            if not source.exists():
                raise UserError(
                    f"There is no data at {shown(source)}; give the path of a CSV or Parquet file "
                    "or of a folder of them."
                )
            if not source.name.lower().endswith(SUFFIXES):
                raise UserError(
                    f"The name of {shown(source)} ends in none of {', '.join(SUFFIXES)}, so that "
                    "it is no data; rename it if it is."
                )
            return [source]
        paths = [
            path
            for path in sorted(source.iterdir())
            if path.name.lower().endswith(SUFFIXES) and not path.name.startswith((".", "_"))
        ]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{shown(source)} cannot be read: {reason}.") from None
    if not paths:
        raise UserError(
            f"The data folder {shown(source)} holds no .csv or .parquet file; put one there."
        )
    return paths


def is_parquet(path: Path) -> bool:
    """Whether the file at `path` is Parquet by its name."""
    return path.name.lower().endswith(".parquet")


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """Yield the size in bytes of the file at `path`; errors in the block become sentences."""
    import pyarrow as pa

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UserError(
                f"{shown(path)} is {what}, though it is called like a file of data; rename it, or "
                "give its path itself if it is a folder of data."
            )
        yield status.st_size
    except UnicodeDecodeError:
        raise UserError(
            f"{shown(path)} is not UTF-8 (line {_undecodable_line(path)}); it looks like Latin-1, "
            "as of Windows: save it in UTF-8."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{shown(path)} is no intact gzip file ({error}); write it anew.") from None
    except pa.ArrowException as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.strerror is None:
            raise _damaged(path, error) from None
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}.") from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0].rstrip(".")
    return UserError(f"{shown(path)} is no intact Parquet file ({reason}); write it anew.")


@contextmanager
def opened_text(path: Path) -> Iterator[IO[str]]:
    """The text of the CSV file at `path`, its ends of lines as they are; to be read in `reading`.

    Raises:
        UserError: it begins as files do that are no text.
    """
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        if is_packed := path.name.lower().endswith(".gz"):
            with gzip.open(file) as unpacked:
                head = unpacked.read(16)
            file.seek(0)
        signature = next(
            (text for magic, text in _SIGNATURES.items() if head.startswith(magic)), None
        )
        if signature is None and b"\0" in head:
            signature = _SIGNATURES[b"\xff\xfe"]
        if signature is not None:
            raise UserError(f"{shown(path)} is no CSV: it {signature}.")
        with (
            gzip.open(file) if is_packed else nullcontext(file) as content,
            TextIOWrapper(content, encoding="utf-8", newline="") as text,
        ):
            yield text


def text_lines(content: IO[str], path: Path) -> Iterator[str]:
    """The lines of `content`, of the file at `path`.

    Raises:
        UserError: one is longer than `MAX_LINE`.
    """
    for number, line in enumerate(iter(lambda: content.readline(MAX_LINE + 1), ""), start=1):
        if len(line) > MAX_LINE:
            raise UserError(
                f"Line {number} of {shown(path)} has more than {MAX_LINE:,} characters; is it CSV?"
            )
        yield line


def _undecodable_line(path: Path) -> int:
    """The first line of the file at `path` that is not UTF-8."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
