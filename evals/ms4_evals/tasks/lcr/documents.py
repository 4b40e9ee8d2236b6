"""The documents of AA-LCR: text files in an archive or a folder, found by category, set and file name.

File names are the trouble. The hub's archive stores UTF-8 names without saying so, which readers of archives then take for code page 437
(``EU’s`` becomes ``EUΓÇÖs``), some are decomposed (``s`` and a cedilla for ``ş``), and a copy that was unpacked keeps whatever its
unpacker made of them. Names are therefore compared composed, and every name that turns into UTF-8 through code page 437 is known by that
form too.

Nothing is unpacked to disk. Exercise it: ``pytest tests/evals/ms4_evals/tasks/lcr/test_documents.py``.
"""

from __future__ import annotations

import contextlib
import difflib
import lzma
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from ms4_train.errors import EvaluationError
from ms4_train.untrusted import read_bytes
from ms4_train.untrusted.files import open_regular

MAX_DOCUMENT_BYTES = 16 << 20
MAX_ARCHIVE_BYTES = 256 << 20
MAX_MEMBERS = 10_000
_SUFFIX = ".txt"
_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, NotImplementedError, EOFError, OSError, ValueError)
"""What a damaged, encrypted or exotic member makes the standard library raise."""

Key = tuple[str, str]


class Documents:
    """The documents of one archive or folder, read when asked for; the same text comes back every time."""

    def __init__(self, origin: Path, readers: dict[Key, Callable[[], bytes]]) -> None:
        self._origin = origin
        self._readers = readers
        self._texts: dict[Key, str] = {}

    def __len__(self) -> int:
        return len(set(map(id, self._readers.values())))

    def text(self, document_set: str, name: str) -> str:
        """The text of a document, with line ends made line feeds, as the benchmark's own reading in text mode does.

        Raises:
            EvaluationError: there is no such document, or it is not UTF-8 text.
        """
        key = (_composed(document_set), _composed(name))
        if key not in self._texts:
            if key not in self._readers:
                raise self._missing(*key)
            try:
                text = self._readers[key]().decode("utf-8")
            except UnicodeDecodeError:
                raise EvaluationError("a document is not UTF-8 text.", file=self._origin, key=name, fix="use the published file.") from None
            self._texts[key] = text.replace("\r\n", "\n").replace("\r", "\n")
        return self._texts[key]

    def _missing(self, document_set: str, name: str) -> EvaluationError:
        there = [other for name_of_set, other in self._readers if name_of_set == document_set]
        near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
        found = f"; the nearest there is {near[0]!r}" if near else "" if there else f"; there is no folder {document_set!r}"
        return EvaluationError(
            f"a document of the set {document_set} is missing: {name!r}{found}.",
            file=self._origin,
            fix="use the whole published archive (extracted_text/AA-LCR_extracted-text.zip).",
        )


@contextlib.contextmanager
def open_documents(path: Path) -> Iterator[Documents]:
    """The documents of an archive or a folder; an archive stays open inside the block.

    Raises:
        EvaluationError: no documents there, two of one name, or more than the bounds allow.
        UntrustedInputError: no such file.
    """
    if path.is_dir():
        found = [(file.relative_to(path).parts, _file_reader(file)) for file in _text_files(path)]
        yield Documents(path, _by_key(path, found))
        return
    with open_regular(path) as raw:
        try:
            archive = zipfile.ZipFile(raw)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise EvaluationError(f"is no archive that can be read ({error}).", file=path, fix="download it again.") from None
        with archive:
            yield Documents(path, _by_key(path, _members(path, archive)))


def _text_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob(f"*{_SUFFIX}") if file.is_file() and not file.name.startswith("._"))
    if len(files) > MAX_MEMBERS:
        raise EvaluationError(f"more than {MAX_MEMBERS:,} text files.", file=folder, fix="name the folder of the data set.")
    return files


def _file_reader(file: Path) -> Callable[[], bytes]:
    return lambda: read_bytes(file, max_bytes=MAX_DOCUMENT_BYTES)


def _members(path: Path, archive: zipfile.ZipFile) -> list[tuple[tuple[str, ...], Callable[[], bytes]]]:
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS or sum(info.file_size for info in infos) > MAX_ARCHIVE_BYTES:
        raise EvaluationError(
            f"holds more than {MAX_MEMBERS:,} files or {MAX_ARCHIVE_BYTES:,} bytes.", file=path, fix="check that it is the right file."
        )
    members: list[tuple[tuple[str, ...], Callable[[], bytes]]] = []
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if not info.is_dir() and info.filename.endswith(_SUFFIX) and "__MACOSX" not in parts and not parts[-1].startswith("._"):
            members.append((parts, _member_reader(path, archive, info)))
    return members


def _member_reader(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with archive.open(info) as file:
                # The size in the archive's table may be a lie.
                data = file.read(MAX_DOCUMENT_BYTES + 1)
        except _UNREADABLE as error:
            raise EvaluationError(f"a document cannot be read ({error}).", file=path, key=info.filename, fix="download it again.") from None
        if len(data) > MAX_DOCUMENT_BYTES:
            raise EvaluationError(f"a document of more than {MAX_DOCUMENT_BYTES:,} bytes.", file=path, key=info.filename)
        return data

    return read


def _by_key(path: Path, found: list[tuple[tuple[str, ...], Callable[[], bytes]]]) -> dict[Key, Callable[[], bytes]]:
    readers: dict[Key, Callable[[], bytes]] = {}
    for parts, reader in found:
        if len(parts) < 2:
            continue
        for key in {(_composed(parts[-2]), _composed(name)) for name in _names(parts[-1])}:
            if key in readers:
                raise EvaluationError(
                    f"two documents have the same place: {key[0]}/{key[1]!r}.", file=path, fix="keep one copy of the documents there."
                )
            readers[key] = reader
    if not readers:
        raise EvaluationError(
            "holds no documents (CATEGORY/SET/NAME.txt).", file=path, fix="name the folder or archive of the data set's extracted text."
        )
    return readers


def _names(name: str) -> tuple[str, ...]:
    return (name, _through_cp437(name), _through_cp437(_composed(name)))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _through_cp437(name: str) -> str:
    """The name with UTF-8 that was read as code page 437 turned back; a name that was not comes back as it is."""
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name
