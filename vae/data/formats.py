"""Read one file as arrays: IDX, the format of MNIST's own files, or NumPy's .npy and .npz.

Files come from the internet. Nothing in them is executed, and no array takes more memory than `MAX_BYTES`: the size
that a file declares is checked before its content is read. What the arrays mean does not matter here.
"""

import gzip
import io
import math
import shlex
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vae.terminal import UserError

MAX_BYTES = 640 * 2**20  # of one array in memory: 14 times MNIST's 60,000 images as bytes
NPY_HEADER = 2**10  # bytes: 118 are usual; some thousands could exhaust Python's parser
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PIECE = 2**20  # bytes of one read
SMALLER = "save the images as bytes (n, H, W) in FOLDER/x_train.npy, which is read piece by piece; then --data FOLDER"
UNPACK = "turn it into .npy files, read piece by piece: python -m vae.unpack {} FOLDER, then --data FOLDER"


@contextmanager
def in_one_line(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises into a UserError of one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib, NumPy, Pillow and Python's parser each have errors of their own
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        reason = str(error).partition("\n")[0][:200] or "truncated"
        raise UserError(f"{path}: is damaged, or of another format ({reason}); get a fresh copy of it") from error


def check_size(where: str, shape: tuple[int, ...], item_bytes: int, remedy: str = SMALLER) -> None:
    """Refuse an array that would take more memory than the limit."""
    size = math.prod(shape) * item_bytes
    if size > MAX_BYTES:
        taken = f"{size:,}" if size < 2**63 else "endless"
        raise UserError(f"{where}: takes {taken} bytes of memory, more than {MAX_BYTES:,}; {remedy}")


def _check(where: str, shape: tuple[int, ...], dtype: np.dtype, unpack: Path | None = None) -> None:
    """Refuse, before it is read, an array of objects, an empty one and one that is too large for memory.

    `unpack` is what vae/unpack.py turns into .npy files; without it the array will not be in memory.
    """
    if dtype.hasobject:
        raise UserError(f"{where}: holds pickled objects, which are never read; save it as a plain array")
    if math.prod(shape) < 1:
        raise UserError(f"{where}: has shape {str(shape)[:100]} and holds nothing; save at least one image")
    if unpack is not None:
        item_bytes = max(dtype.itemsize, 4 if dtype.kind in "bf" else 1)  # truth values become floats
        check_size(where, shape, item_bytes, UNPACK.format(shlex.quote(str(unpack))))


def open_unzipped(raw: BinaryIO) -> BinaryIO:
    """The content of an open file, unzipped if need be. Content tells: browsers unpack .gz and do not rename."""
    return gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw


# IDX (http://yann.lecun.com/exdb/mnist): a type, big-endian sizes, numbers


def read_idx(path: Path, dimensions: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file, gzipped or not, whose array must have one of these numbers of dimensions."""
    with in_one_line(path), open(path, "rb") as raw:
        file = open_unzipped(raw)
        shape, dtype = _read_idx_header(path, file, dimensions)
        _check(str(path), shape, dtype, unpack=path.parent)
        size = math.prod(shape) * dtype.itemsize
        content = file.read(size + 1)  # one more: gzip comes to its checksum, and a longer file shows
        _check_length(path, len(content), size)
    return np.frombuffer(content, dtype).reshape(shape)


def _read_idx_header(path: Path, file: BinaryIO, dimensions: tuple[int, ...]) -> tuple[tuple[int, ...], np.dtype]:
    magic = file.read(4)
    if not magic:
        raise UserError(f"{path}: is empty; get a fresh copy of it")
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or magic[3] not in dimensions:
        wanted = " or ".join(f"0x00000{8:x}{number:02x}" for number in dimensions)
        what = f"begins with the magic number 0x{magic.hex()}, expected {wanted}"
        raise UserError(f"{path}: {what}; check that it is the file that its name says")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise UserError(f"{path}: is truncated within its header; get a fresh copy of it")
    return struct.unpack(f">{magic[3]}I", sizes), np.dtype(IDX_TYPES[magic[2]])


def _check_length(path: Path, found: int, declared: int) -> None:
    if found != declared:
        what = "goes on after" if found > declared else f"is truncated: it holds {found:,} bytes of"
        raise UserError(f"{path}: {what} the {declared:,} that its header declares; get a fresh copy of it")


def idx_to_npy(path: Path) -> Iterator[bytes]:
    """Turn an IDX file, gzipped or not, into an .npy file: its content in pieces."""
    with in_one_line(path), open(path, "rb") as raw:
        file = open_unzipped(raw)
        shape, dtype = _read_idx_header(path, file, (1, 2, 3))
        _check(str(path), shape, dtype)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        yield header.getvalue()
        size, done = math.prod(shape) * dtype.itemsize, 0
        while done <= size and (piece := file.read(PIECE)):
            yield piece
            done += len(piece)
        _check_length(path, done, size)


# .npy: a header and an array; .npz (numpy.savez): a zip archive of them


def map_npy(path: Path) -> np.ndarray:
    """Map an .npy file: its array is read piece by piece when it is used, and may be larger than memory."""
    with in_one_line(path):
        with open(path, "rb") as file:
            shape, dtype, start = _read_header(file)
            end = file.seek(0, io.SEEK_END)
        _check(str(path), shape, dtype)
        size = math.prod(shape) * dtype.itemsize
        if start + size != end:
            raise UserError(f"{path}: declares {size:,} bytes, but holds {end - start:,}; write it with numpy.save")
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def read_npz(path: Path, names: list[str]) -> list[np.ndarray]:
    """Read these arrays of an archive."""
    with in_one_line(path), zipfile.ZipFile(path) as archive:
        return [_read_member(path, archive, name) for name in names]


def list_npz(path: Path) -> list[str]:
    """The names of an archive's arrays."""
    with in_one_line(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with _open_member(path, archive, name, unpack=path) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def _open_member(path: Path, archive: zipfile.ZipFile, name: str, unpack: Path | None = None) -> Iterator[BinaryIO]:
    """Open the .npy file of an array in an archive, after a look at its header."""
    where, member = f"{path}: {name}", archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA takes what memory it declares
        raise UserError(f"{where}: is compressed in an unusual way; write it with numpy.savez or savez_compressed")
    with archive.open(member) as file:
        shape, dtype, start = _read_header(file)
        _check(where, shape, dtype, unpack)
        size = math.prod(shape) * dtype.itemsize
        if start + size != member.file_size:
            raise UserError(f"{where}: declares {size:,} bytes, but has another size; write it with numpy.savez")
        file.seek(0)
        yield file


def member_to_npy(path: Path, name: str) -> Iterator[bytes]:
    """Read an array of an archive as an .npy file: its content in pieces."""
    with in_one_line(path), zipfile.ZipFile(path) as archive, _open_member(path, archive, name) as file:
        yield from iter(lambda: file.read(PIECE), b"")


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, int]:
    """The shape and type of the array in an .npy file, and where its content starts."""
    header = io.BytesIO(file.read(12 + NPY_HEADER))  # no more, though a header may declare 4 GiB
    first_version = np.lib.format.read_magic(header) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first_version else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(header, NPY_HEADER)
    return shape, dtype, header.tell()
