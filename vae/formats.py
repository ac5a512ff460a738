"""Read images and labels from files: IDX, the format of MNIST's own files, and NumPy's .npz.

Files come from the internet. Nothing in them is executed, and no array takes more memory than `MAX_BYTES`: the size
that a file declares is checked before its content is read.
"""

import gzip
import io
import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vae.terminal import UserError

IMAGE_SHAPE = (28, 28)
MAX_BYTES = 640 * 2**20  # of one array: 14 times MNIST's 60,000 images as bytes
NPY_HEADER = 2**10  # bytes: 118 are usual; some thousands could exhaust Python's parser

# The fields of a `Dataset`, and what they are called in files.
ROLES = ("train_images", "train_labels", "test_images", "test_labels")
IDX_STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")
FOLDERS = ("", "MNIST/raw", "FashionMNIST/raw", "raw")  # where in a folder the files may be, as torchvision has them

Arrays = dict[str, np.ndarray | None]  # by role; labels are None where there are none


def read(path: Path) -> Arrays:
    """Read a folder with the four IDX files, or an .npz file: images (n, 28, 28), labels (n,) or None, by role.

    Images are uint8, or float32 in [0, 1]. Raises UserError for files that are missing, damaged or hostile.
    """
    arrays = _read_folder(path) if path.is_dir() else _read_npz(path)
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if labels is not None and len(labels) != len(images):
            what = f"holds {len(labels):,} {part} labels for {len(images):,} {part} images"
            raise UserError(f"{path}: {what}; take both from one data set")
    return arrays


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib, NumPy and Python's parser each have errors of their own
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        reason = str(error).partition("\n")[0][:200] or "truncated"
        raise UserError(f"{path}: is damaged, or of another format ({reason}); get a fresh copy of it") from error


# IDX (http://yann.lecun.com/exdb/mnist): big-endian sizes, then bytes


def _read_folder(path: Path) -> Arrays:
    """Read the four IDX files of a folder; both files of labels may be missing."""
    places = [path / inner for inner in FOLDERS if any(_find(path / inner, stem) for stem in IDX_STEMS)]
    if len(places) > 1 and path not in places:
        raise UserError(f"{path}: holds several data sets ({' and '.join(map(str, places))}); name one of them")
    folder = places[0] if places else path
    files = [_find(folder, stem) for stem in IDX_STEMS]
    missing = [stem for stem, file in zip(IDX_STEMS, files, strict=True) if file is None]
    if missing not in ([], [IDX_STEMS[1], IDX_STEMS[3]]):
        raise UserError(f"{folder}: lacks {' and '.join(missing)} (.gz or not); add what is missing")
    roles = zip(ROLES, files, strict=True)
    return {role: None if file is None else _read_idx(file, "images" in role) for role, file in roles}


def _find(folder: Path, stem: str) -> Path | None:
    names = [name + end for name in (stem, stem.replace("-idx", ".idx")) for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_idx(path: Path, is_images: bool) -> np.ndarray:
    """Read a file of bytes, gzipped or not: images (n, 28, 28) or labels (n,)."""
    magic = 0x0803 if is_images else 0x0801  # bytes in three dimensions or in one
    with _in_one_line(path), open(path, "rb") as raw:
        # Content tells gzip, not the name: browsers unpack .gz files and do not rename them.
        file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
        header = file.read(16 if is_images else 8)
        if len(header) < (16 if is_images else 8):
            raise UserError(f"{path}: is empty or truncated; get a fresh copy of it")
        if int.from_bytes(header[:4], "big") != magic:
            what = f"begins with the magic number 0x{header[:4].hex()}, expected 0x{magic:08x}"
            raise UserError(f"{path}: {what}; check that it is the file that its name says")
        shape = struct.unpack(f">{len(header) // 4 - 1}I", header[4:])
        _check(str(path), shape, np.dtype(np.uint8), is_images)
        size = math.prod(shape)
        content = file.read(size + 1)  # one more: gzip comes to its checksum, and a longer file shows
    if len(content) != size:
        what = "goes on after" if len(content) > size else f"is truncated: it holds {len(content):,} bytes of"
        raise UserError(f"{path}: {what} the {size:,} that its header declares; get a fresh copy of it")
    array = np.frombuffer(content, np.uint8).reshape(shape)
    return _to_bytes_or_floats(str(path), array) if is_images else array


# .npz (numpy.savez): a zip archive of .npy files, each a header and an array


def _read_npz(path: Path) -> Arrays:
    """Read x_train and x_test, and, where the archive has both of them, y_train and y_test."""
    with _in_one_line(path), zipfile.ZipFile(path) as archive:
        present = archive.namelist()
        missing = [name for name in NPZ_NAMES if f"{name}.npy" not in present]
        if missing not in ([], ["y_train", "y_test"]):
            what = f"lacks {' and '.join(missing)} (it holds {str(present)[:200]})"
            raise UserError(f"{path}: {what}; save it with x_train, x_test and, if any, labels y_train and y_test")
        names = zip(ROLES, NPZ_NAMES, strict=True)
        return {role: None if name in missing else _read_npy(path, archive, name) for role, name in names}


def _read_npy(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    where, member, is_images = f"{path}: {name}", archive.getinfo(f"{name}.npy"), name.startswith("x")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA takes what memory it declares
        raise UserError(f"{where} is compressed in an unusual way; write it with numpy.savez or savez_compressed")
    with archive.open(member) as file:
        header = io.BytesIO(file.read(12 + NPY_HEADER))  # no more, though a header may declare 4 GiB
        first_version = np.lib.format.read_magic(header) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if first_version else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(header, NPY_HEADER)
        _check(where, shape, dtype, is_images)
        size = math.prod(shape) * dtype.itemsize
        if header.tell() + size != member.file_size:
            raise UserError(f"{where} declares {size:,} bytes, but the archive another size; write it with numpy.savez")
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
    if is_images:
        return _to_bytes_or_floats(where, array.reshape(-1, *IMAGE_SHAPE))
    return array if array.dtype == np.uint8 else array.astype(np.int64)


# Both formats


def _check(where: str, shape: tuple[int, ...], dtype: np.dtype, is_images: bool) -> None:
    """Refuse, before it is read, what is too large, or neither images (n, 28, 28), (n, 28, 28, 1) nor labels (n,)."""
    if dtype.hasobject:
        raise UserError(f"{where} holds pickled objects, which are never read; save it as a plain array")
    if dtype.kind not in ("biuf" if is_images else "iu"):
        wanted = "floats or bytes" if is_images else "whole numbers"
        raise UserError(f"{where} is of type {dtype.name:.50}; save {wanted}")
    if is_images and shape[1:] not in (IMAGE_SHAPE, (*IMAGE_SHAPE, 1)):
        raise UserError(f"{where} has shape {shape}, expected (n, 28, 28) or (n, 28, 28, 1); scale the images first")
    if not is_images and len(shape) != 1:
        raise UserError(f"{where} has shape {shape}, expected (n,), a label for each image; correct it")
    if shape[0] < 1:
        raise UserError(f"{where} holds nothing; save at least one image")
    size = math.prod(shape) * (4 if dtype.kind == "b" else dtype.itemsize)  # truth values become floats
    if size > MAX_BYTES:
        raise UserError(f"{where} takes {size:,} bytes, more than {MAX_BYTES:,}; save fewer images, or as uint8")


def _to_bytes_or_floats(where: str, images: np.ndarray) -> np.ndarray:
    """Images of any number type as uint8, or as float32 in [0, 1]; UserError where a pixel is outside of both."""
    if images.dtype.kind == "b":
        return images.astype(np.float32)
    low, high = images.min().item(), images.max().item()
    if images.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # NaN fails too
            what = f"has pixels that are {'NaN' if math.isnan(low) else f'from {low} to {high}'}"
            raise UserError(f"{where} {what}; floats must be in 0..1: scale them")
        return images.astype(np.float32, order="C", copy=False)
    if low < 0 or high > 255:
        raise UserError(f"{where} has pixels from {low} to {high}; whole numbers must be in 0..255: scale them")
    if high == 1:  # binary images, which a division by 255 would turn black
        raise UserError(f"{where} has pixels of 0 or 1 out of 255, all but black; multiply by 255, or save as floats")
    return images.astype(np.uint8, order="C", copy=False)
