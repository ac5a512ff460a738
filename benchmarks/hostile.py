"""What `benchmarks/fuzz.py` does to healthy files: every kind of harm is a function of a path and an rng.

The kinds of harm are in the tables at the end, by name. What is drawn at random comes from the generator alone.
"""

import functools
import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vae.data import MAX_COUNT

Bytes = Callable[[bytes, np.random.Generator], bytes]
Harm = Callable[[Path, np.random.Generator], None]

# Bytes, whatever they mean


def pick(rng: np.random.Generator, options):
    """One of the options, as it is: `rng.choice` would make an array of them."""
    return options[rng.integers(len(options))]


def place(content: bytes, rng: np.random.Generator) -> int:
    """A place in the content, half of the time near one of its ends, where most of what is declared stands."""
    near = rng.integers(min(400, len(content)) + 1)
    return pick(rng, [rng.integers(len(content) + 1), rng.integers(len(content) + 1), near, len(content) - near])


def truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: place(content, rng)]


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    harmed = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        harmed[min(place(content, rng), len(content) - 1)] ^= 1 << rng.integers(8)
    return bytes(harmed)


def overwritten(content: bytes, rng: np.random.Generator) -> bytes:
    start, size = place(content, rng), pick(rng, [1, 2, 4, 8, 64, 1000])
    filling = (bytes(size), b"\xff" * size, rng.bytes(size), b"\x7f" + b"\xff" * (size - 1))[rng.integers(4)]
    return content[:start] + filling + content[start + size :]


def inserted(content: bytes, rng: np.random.Generator) -> bytes:
    start = place(content, rng)
    return content[:start] + rng.bytes(pick(rng, [1, 4, 100, 5000])) + content[start:]


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
    """Harm one member of a zip archive, whose name ends so, and write all anew: checksums are right."""

    def harm(path: Path, rng: np.random.Generator) -> None:
        members = unzipped(path)
        name = pick(rng, [name for name in members if name.endswith(ending)])
        packed = (
            zipfile.ZIP_STORED if path.suffix == ".keras" else pick(rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        )
        rezipped(path, members | {name: change(members[name], rng)}, packed)

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
    size = pick(rng, [0, 1, 27, MAX_COUNT, MAX_COUNT + 1, 2**31, 2**32 - 1])
    at = pick(rng, [4, 8, 12])
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
    kind, shape, order = pick(rng, TYPES), pick(rng, SHAPES), pick(rng, ["True", "False"])
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}}}"
    text = (text + " " * pick(rng, [0, 0, 900, 20_000]) + "\n").encode()
    version = int(rng.integers(1, 5))
    size = struct.pack("<H" if version == 1 else "<I", pick(rng, [len(text), len(text), 2**16 - 1, 0]))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + content[128:]


def values_of_npy(content: bytes, rng: np.random.Generator) -> bytes:
    """A sound array of the same shape, of another type or with other values."""
    array = np.lib.format.read_array(io.BytesIO(content))
    value = rng.choice([0, 1, -1, 255, 256, np.nan, np.inf, -np.inf, 1e-45, 1e38, 1e300])
    with np.errstate(all="ignore"):
        array = np.where(rng.random(array.shape) < rng.choice([0.01, 1]), value, array)
        array = array.astype(pick(rng, ["f2", "f4", "f8", "g", "i1", "i8", "u1", "u8", "?", "c8", ">f4", "U5"]))
    target = io.BytesIO()
    np.lib.format.write_array(target, array if rng.random() < 0.8 else np.asfortranarray(array)[..., None])
    return target.getvalue()


def directory_of_zip(content: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive whose directory lies about a member's method, sizes or place."""
    starts = [at for at in range(len(content)) if content.startswith(b"PK\1\2", at)] if len(content) < 10**5 else []
    starts = starts or [content.rindex(b"PK\1\2")]
    at = pick(rng, starts) + pick(rng, [8, 10, 20, 24, 24, 24, 42])
    size = pick(rng, [0, 1, 2**16, 2**27, 2**30, 2**31, 2**32 - 2, 2**32 - 1])
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


def compressed_oddly(path: Path, rng: np.random.Generator) -> None:
    """BZIP2, or LZMA with a dictionary of 4 GiB."""
    method = pick(rng, [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
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
            for file in path.parent.glob("*labels*"):
                file.unlink()
            for file in path.parent.glob("*images*"):
                rest = gzip.compress(bytes(MAX_COUNT * 784 % 2**20))
                file.write_bytes(gzip.compress(header) + zeros(MAX_COUNT * 784 // 2**20 * 2**20, 31) + rest)
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
        for _ in range(rng.integers(1, 4)):
            member = zipfile.ZipInfo(pick(rng, [*NAMES, *members]))
            if rng.random() < 0.5:
                member.external_attr = 0o120777 << 16  # a symbolic link
            archive.writestr(member, pick(rng, [b"/tmp/outside", b"x" * 1000, pickled(b"", rng)]))


# JSON

VALUES = (None, True, False, -1, 0, 1, 2, 0.5, 10**5, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "x")
VALUES += (
    "a\nb\u2028c",
    "x" * 10**5,
    "\ud800",
    "\0",
    "~\0",
    "~\ud800",
    "../../x",
    "/",
    "/dev/zero",
    "/dev",
    "mnist\n",
    [],
    {},
)
VALUES += (
    [None],
    [[1, 2], [3]],
    {"a": "\n"},
    [0] * 1000,
    [-1],
    [10**9, 10**9],
    ["\n" * 900],
    "float16",
    "string",
    "relu",
    7,
    1000,
)


def nested(rng: np.random.Generator):
    """Lists or objects within one another."""
    value = 1
    for _ in range(pick(rng, [50, 200, 240, 300, 480, 900])):
        value = [value] if rng.random() < 0.5 else {"config": value}
    return value


def values_of_json(value, rng: np.random.Generator, hostile: tuple = VALUES):
    """The same, with one value in it replaced, added or removed."""
    places, todo = [], [value]
    while todo:
        inner = todo.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        places += [(inner, key) for key in keys]
        todo += [inner[key] for key in keys]
    inner, key = pick(rng, places)
    if rng.random() < 0.15:
        del inner[key]
    elif rng.random() < 0.15:
        other, there = pick(rng, places)
        inner[key] = json.loads(json.dumps(other[there]))
    else:
        inner[key] = nested(rng) if rng.random() < 0.1 else pick(rng, hostile)
    return value


def to_json(hostile: tuple = VALUES) -> Bytes:
    """One to three values, of a JSON text, replaced by others."""

    def change(content: bytes, rng: np.random.Generator) -> bytes:
        value = json.loads(content)
        for _ in range(rng.integers(1, 4)):
            value = values_of_json(value, rng, hostile)
        return json.dumps(value).encode()

    return change


def texts_of_json(content: bytes, rng: np.random.Generator) -> bytes:
    """JSON in another encoding, with a key twice, nested deeper than any parser goes, or that is none."""
    text = content.decode()
    deep = pick(rng, [900, 990, 10**4, 10**6])
    return pick(
        rng,
        (
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            text.replace(": ", ": \xe4", 1).encode("latin-1"),
            text.replace("{", '{"format": [2], "config": 5, "format": "' + "y" * 2000 + '",', 1).encode(),
            text.replace("{", '{"format": "\\n\\u2028", ', 1).encode()
            if rng.random() < 0.5
            else b'{"format": ' + b"9" * 4000 + b"}",
            b"[" * deep + b"]" * deep,
            text.rstrip()[:-1].encode() + b', "x": ' + b'{"a":' * deep + b"1" + b"}" * deep + b"}",
            text.replace("true", "NaN").replace("false", "-Infinity").encode(),
            text.rstrip()[:-1].encode() + b', "x": ' + b"9" * 10**6 + b"}",
            b"[" + b"[]," * 10**5 + b"[]]",
            content + b"\0",
        ),
    )


# Models

FOREIGN = [
    (MODULE, "run"),
    ("os", "system"),
    ("builtins", "eval"),
    ("subprocess", "Popen"),
    ("keras.utils", "get_file"),
]
FOREIGN += [
    ("keras.config", "enable_unsafe_deserialization"),
    ("keras.layers", "Lambda"),
    ("keras.saving", "load_model"),
]
FOREIGN += [("keras.layers", "TFSMLayer"), ("keras.layers", "TorchModuleWrapper"), ("keras.layers", "StringLookup")]
FOREIGN += [
    ("keras.src.saving.saving_lib", "tempfile"),
    ("keras.src.utils.file_utils", "shutil"),
    ("keras.utils", "Progbar"),
]
FOREIGN += [
    ("keras.models", "Sequential"),
    ("keras.layers", "RNN"),
    ("keras.datasets.mnist", "load_data"),
    (None, "__lambda__"),
]
GIVEN = {
    "fname": "/tmp/outside",
    "origin": "file:///etc/hostname",
    "filepath": "/tmp/outside",
    "vocabulary": "/etc/passwd",
}
GIVEN |= {
    "function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}},
    "value": "4wEAAAA=",
    "module": "gASVAAAA",
}
CODE = [
    {"module": m, "class_name": c, "config": GIVEN, "registered_name": r} for m, c in FOREIGN for r in (None, "a>b")
]
CODE += [{"module": m, "class_name": "function", "config": c, "registered_name": c} for m, c in FOREIGN]
CODE += [{"module": m, "class_name": c, "config": {"name": "x"}, "build_config": GIVEN} for m, c in FOREIGN]


def weights(content: bytes, rng: np.random.Generator) -> bytes:
    """Weights, in sound HDF5, that declare more than there is, lie elsewhere, or are no numbers of this shape."""
    import h5py

    target = io.BytesIO(content)
    with h5py.File(target, "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = pick(rng, names)
        shape, values = file[name].shape, file[name][()]
        del file[name]
        layout = h5py.VirtualLayout(shape, "f4")
        layout[...] = h5py.VirtualSource("/etc/passwd", "x", shape)
        large = (2**10, 2**10, pick(rng, [2**9, 2**10 - 1, 2**14]))
        pick(
            rng,
            (
                lambda: file.create_dataset(name, large, "f4", chunks=(16, 16, 16), compression="gzip"),
                lambda: file.create_dataset(name, large, "f4"),
                lambda: file.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, 2**20)]),
                lambda: file.create_virtual_dataset(name, layout),
                lambda: file.__setitem__(name, h5py.ExternalLink("/etc/passwd", "x")),
                lambda: file.__setitem__(name, h5py.SoftLink("/")),
                lambda: file.__setitem__(name, file["/"]),
                lambda: file.create_dataset(name, shape, h5py.string_dtype()),
                lambda: file.create_dataset(name, data=values.astype("c16")),
                lambda: file.create_dataset(name, data=values * np.float32("nan")),
                lambda: file.create_dataset(name, data=np.zeros(shape, [("a", "f4")])),
                lambda: file.create_dataset(name, data=values, compression="gzip"),
                lambda: file.create_group(name),
                lambda: None,
            ),
        )()
    return target.getvalue()


def many_layers(content: bytes, rng: np.random.Generator) -> bytes:
    """A network with twenty thousand layers, though none that has weights."""
    config = json.loads(content)
    layers = config["config"]["layers"]
    copy = json.dumps(next(layer for layer in layers if layer["class_name"] in ("Flatten", "Reshape")))
    for number in range(20_000):
        layers.append(json.loads(copy) | {"name": f"more{number}"})
        layers[-1]["config"] = layers[-1]["config"] | {"name": f"more{number}"}
    return json.dumps(config).encode()


# The tables. What costs seconds is rare: once in five hundred cases

PLAIN = {f.__name__: to_bytes(f) for f in (truncated, flipped, overwritten, inserted, repeated)}
LINKS = {
    f"a link to {t}": linked(t) for t in ("/dev/zero", "/dev/urandom", "/dev/tty", ".", "nowhere", "/etc/hostname")
}
LINKS |= {"a link to itself": linked("{name}"), "a pipe": pipe}
ZIP = {
    "its directory lies": to_bytes(directory_of_zip),
    "compressed oddly": compressed_oddly,
    "members elsewhere": members_elsewhere,
}
NPZ = PLAIN | LINKS | ZIP
NPZ |= {f"{f.__name__}, checksums mended": to_member(f) for f in (truncated, flipped, overwritten, inserted, repeated)}
NPZ |= {f.__name__.replace("_", " "): to_member(f) for f in (headers_of_npy, values_of_npy, pickled)}
IDX = PLAIN | LINKS | {"sizes of idx": to_bytes(sizes_of_idx)}
GZIP = PLAIN | LINKS
GZIP |= {
    f"{f.__name__}, checksums mended": to_payload(f) for f in (truncated, flipped, overwritten, inserted, repeated)
}
GZIP |= {"sizes of idx": to_payload(sizes_of_idx)}
CONFIG = PLAIN | LINKS | {"values of json": to_bytes(to_json()), "texts of json": to_bytes(texts_of_json)}
KERAS = PLAIN | LINKS | ZIP
KERAS |= {
    f"{f.__name__}, checksums mended": to_member(f) for f in (truncated, flipped, overwritten, inserted, repeated)
}
KERAS |= {"weights overwritten, checksums mended": to_member(overwritten, ".h5"), "weights": to_member(weights, ".h5")}
KERAS |= {"values of json": to_member(to_json(), "config.json"), "texts of json": to_member(texts_of_json, ".json")}
KERAS |= {"foreign code": to_member(to_json(tuple(CODE)), "config.json")}

HEADER = b"\x93NUMPY\2\0" + struct.pack("<I", 2**30 - 2**21)
RARE = {
    "idx": {"six GiB": sparse},
    "gzip": {"a bomb": gzip_bomb, "members of nothing": gzip_of_nothing, "the largest": largest("idx")},
    "npz": {
        "six GiB": sparse,
        "a bomb": zip_bomb("x_test.npy", b"", b"\0", 3 * 2**30),
        "the largest, of bytes": largest("u1"),
        "the largest, of bits": largest("b1"),
    },
    "config": {"six GiB": sparse},
    "arrays": {
        "six GiB": sparse,
        "a bomb": zip_bomb("x.npy", b"", b"\0", 3 * 2**30),
        "an endless header": zip_bomb("x.npy", HEADER, b" ", 2**30 - 2**21),
    },
    "keras": {
        "six GiB": sparse,
        "a bomb for weights": zip_bomb("model.weights.h5", b"", b"\0", 3 * 2**30),
        "a bomb for metadata": zip_bomb("metadata.json", b"", b"\0", 3 * 2**30),
        "a bomb for assets": zip_bomb("assets/x", b"", b"\0", 200 * 2**20),
        "a long config": zip_bomb("config.json", b"[", b"[],", 200 * 2**20),
        "many layers": to_member(many_layers, "config.json"),
    },
}
