"""What `benchmarks/fuzz.py` does to healthy files: every function takes a path and a random generator, and harms the file.

The kinds of harm are in the tables at the end, by name. What is drawn at random comes from the generator alone.
"""

import functools
import gzip
import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vae.data import MAX_BYTES, MAX_COUNT

Bytes = Callable[[bytes, np.random.Generator], bytes]
Harm = Callable[[Path, np.random.Generator], None]

# Bytes, whatever they mean


def place(content: bytes, rng: np.random.Generator) -> int:
    """A place in the content, half of the time near one of its ends, where most of what is declared stands."""
    near = rng.integers(min(400, len(content)) + 1)
    return int(rng.choice([rng.integers(len(content) + 1), rng.integers(len(content) + 1), near, len(content) - near]))


def truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: place(content, rng)]


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    harmed = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        harmed[min(place(content, rng), len(content) - 1)] ^= 1 << rng.integers(8)
    return bytes(harmed)


def overwritten(content: bytes, rng: np.random.Generator) -> bytes:
    start, size = place(content, rng), int(rng.choice([1, 2, 4, 8, 64, 1000]))
    filling = (bytes(size), b"\xff" * size, rng.bytes(size), b"\x7f" + b"\xff" * (size - 1))[rng.integers(4)]
    return content[:start] + filling + content[start + size :]


def inserted(content: bytes, rng: np.random.Generator) -> bytes:
    start = place(content, rng)
    return content[:start] + rng.bytes(int(rng.choice([1, 4, 100, 5000]))) + content[start:]


def repeated(content: bytes, rng: np.random.Generator) -> bytes:
    start, end, there = sorted(place(content, rng) for _ in range(3))
    return content[:there] + content[start:end] * int(rng.integers(1, 4)) + content[there:]


def to_bytes(change: Bytes) -> Harm:
    """Harm the file's own bytes: checksums are left wrong."""
    return lambda path, rng: path.write_bytes(change(path.read_bytes(), rng))


def to_payload(change: Bytes) -> Harm:
    """Harm what is inside of gzip, so that the checksum is right."""
    return to_bytes(lambda content, rng: gzip.compress(change(gzip.decompress(content), rng), 1))


def to_member(change: Bytes, ending: str = "") -> Harm:
    """Harm one member of a zip archive, of those whose name ends so, and write all anew, so that checksums are right."""

    def harm(path: Path, rng: np.random.Generator) -> None:
        members = unzipped(path)
        name = str(rng.choice([name for name in members if name.endswith(ending)]))
        rezipped(path, members | {name: change(members[name], rng)}, int(rng.choice([0, 8])))

    return harm


def unzipped(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezipped(path: Path, members: dict, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# Files that are no files


def linked(target: str) -> Harm:
    def harm(path: Path, rng: np.random.Generator) -> None:
        path.unlink()
        path.symlink_to(target.format(name=path.name))

    return harm


def pipe(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    os.mkfifo(path)


def sparse(path: Path, rng: np.random.Generator) -> None:
    """Six GiB that take no space on the disk, the file's own content at their beginning and at their end."""
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(6 * 2**30)
        file.write(content)


# Sizes


def sizes_of_idx(content: bytes, rng: np.random.Generator) -> bytes:
    size = int(rng.choice([0, 1, 27, MAX_COUNT, MAX_COUNT + 1, 2**31, 2**32 - 1]))
    at = int(rng.choice([4, 8, 12]))
    return content[:at] + struct.pack(">I", size) + content[at + 4 :]


SHAPES = (
    "(10000000000, 28, 28)",
    "(9223372036854775807,)",
    "(-1, 28, 28)",
    "(1369568, 28, 28)",
    "()",
    "(0,)",
    "(2.5,)",
)
SHAPES += (
    "(28, 28) * 9",
    "(" * 180 + ")" * 180,
    "(1,) * 10**9",
    "(True, 28, 28)",
    "(2, 28, 28, 1)",
    "(" + "9" * 500 + ",)",
)
TYPES = (
    "'|u1'",
    "'<f8'",
    "'|b1'",
    "'|O'",
    "'|V0'",
    "'|S0'",
    "'<f16'",
    "'<U9'",
    "'<m8[ns]'",
    "[('a', '<f4')]",
    "'>i2'",
    "7",
)


def headers_of_npy(content: bytes, rng: np.random.Generator) -> bytes:
    """An array that declares another shape and type, in any version of the format, long headers among them."""
    text = f"{{'descr': {rng.choice(TYPES)}, 'fortran_order': {rng.choice(['True', 'False'])}, 'shape': {rng.choice(SHAPES)}}}"
    text = (text + " " * int(rng.choice([0, 0, 900, 20_000])) + "\n").encode()
    version = int(rng.integers(1, 5))
    size = struct.pack("<H" if version == 1 else "<I", int(rng.choice([len(text), len(text), 2**16 - 1, 0])))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + content[128:]


def values_of_npy(content: bytes, rng: np.random.Generator) -> bytes:
    """A sound array of the same shape, of another type or with other values."""
    array = np.lib.format.read_array(io.BytesIO(content))
    value = rng.choice([0, 1, -1, 255, 256, np.nan, np.inf, -np.inf, 1e-45, 1e38, 1e300])
    with np.errstate(all="ignore"):
        array = np.where(rng.random(array.shape) < rng.choice([0.01, 1]), value, array)
        array = array.astype(rng.choice(["f2", "f4", "f8", "g", "i1", "i8", "u1", "u8", "?", "c8", ">f4", "U5"]))
    target = io.BytesIO()
    np.lib.format.write_array(target, array if rng.random() < 0.8 else np.asfortranarray(array)[..., None])
    return target.getvalue()


def directory_of_zip(content: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive whose directory lies about a member's method, sizes or place."""
    starts = [at for at in range(len(content)) if content.startswith(b"PK\1\2", at)] if len(content) < 10**5 else []
    starts = starts or [content.rindex(b"PK\1\2")]
    at = int(rng.choice(starts)) + int(rng.choice([8, 10, 20, 24, 24, 24, 42]))
    size = int(rng.choice([0, 1, 2**16, 2**27, 2**30, 2**31, 2**32 - 2, 2**32 - 1]))
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


def compressed_oddly(path: Path, rng: np.random.Generator) -> None:
    """BZIP2, or LZMA with a dictionary of 4 GiB."""
    method = int(rng.choice([zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    rezipped(path, unzipped(path), method)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        starts = [30 + member.header_offset + len(member.filename) for member in archive.infolist()]
    for start in starts if method == zipfile.ZIP_LZMA else []:
        content[start + 5 : start + 9] = b"\xff" * 4
    path.write_bytes(content)


@functools.cache
def zeros(size: int, wbits: int) -> bytes:
    """So many zeros, compressed: by gzip where `wbits` is 31, by bare deflate where it is -15."""
    engine = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join([engine.compress(bytes(2**20)) for _ in range(size // 2**20)]) + engine.flush()


def gzip_bomb(path: Path, rng: np.random.Generator) -> None:
    """Three GiB of zeros after the sound content."""
    path.write_bytes(path.read_bytes() + zeros(3 * 2**30, 31))


def gzip_of_nothing(path: Path, rng: np.random.Generator) -> None:
    """Sixty MB of gzip members without content before the sound one, or of a member's name."""
    empty = gzip.compress(b"")
    long = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 6 * 10**7 + b"\0" + path.read_bytes()[10:]
    path.write_bytes(long if rng.random() < 0.5 else empty * 3 * 10**6 + path.read_bytes())


def largest(kind: str) -> Harm:
    """The largest sound images that are not refused for their size alone, all zeros: a bomb that keeps all promises."""

    def harm(path: Path, rng: np.random.Generator) -> None:
        if kind == "idx":
            header = struct.pack(">4I", 0x803, MAX_COUNT, 28, 28)
            for file in path.parent.glob("*images*"):
                file.write_bytes(gzip.compress(header) + zeros(MAX_BYTES - 2**20, 31) + gzip.compress(bytes(2**20)))
            return
        text = f"{{'descr': '|{kind}', 'fortran_order': True, 'shape': ({MAX_COUNT}, 28, 28)}}\n".encode()
        header = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in ("x_train.npy", "x_test.npy"):
                with archive.open(name, "w") as member:
                    member.write(header)
                    for _ in range(MAX_COUNT):
                        member.write(bytes(784))

    return harm


def zip_bomb(name: str, start: bytes, filling: bytes, size: int) -> Harm:
    """A member of so many bytes, that begins with `start` and goes on with `filling`, in the place of the sound one."""

    def harm(path: Path, rng: np.random.Generator) -> None:
        members = {other: content for other, content in unzipped(path).items() if other != name}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for other, content in members.items():
                archive.writestr(other, content)
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(start)
                for _ in range(size // 2**20):
                    member.write((filling * 2**20)[: 2**20])

    return harm


# What archives must not be able to do

MODULE = "hostile_module"  # which nobody must import: benchmarks/fuzz.py makes it, and looks


class Trap:
    """What runs a command, or a module, when it is unpickled."""

    def __init__(self, imports: bool):
        self.imports = imports

    def __reduce__(self):
        return (__import__, (MODULE,)) if self.imports else (os.system, ("touch sprung",))


def pickled(content: bytes, rng: np.random.Generator) -> bytes:
    """An array of objects, or a bare pickle."""
    trap = Trap(bool(rng.integers(2)))
    if rng.random() < 0.3:
        return pickle.dumps(trap)
    target = io.BytesIO()
    np.lib.format.write_array(target, np.array([trap], object), allow_pickle=True)
    return target.getvalue()


NAMES = (
    "../outside",
    "/tmp/outside",
    "../../../../../../tmp/outside",
    "C:\\outside",
    "..\\outside",
    "assets/../../outside",
)
NAMES += (
    "assets/outside",
    "config.json/outside",
    "x" * 5000,
    "a\nb",
    "",
    "/",
    "con",
    "../x_train.npy",
    "model.weights.npz",
)


def members_elsewhere(path: Path, rng: np.random.Generator) -> None:
    """Members that name places outside, links among them, or one name twice."""
    members = unzipped(path)
    rezipped(path, members)
    with zipfile.ZipFile(path, "a") as archive:
        for name in rng.choice([*NAMES, *members], rng.integers(1, 4)):
            member = zipfile.ZipInfo(str(name))
            if rng.random() < 0.5:
                member.external_attr = 0o120777 << 16  # a symbolic link
            archive.writestr(member, rng.choice([b"/tmp/outside", b"x" * 1000, pickled(b"", rng)]))
