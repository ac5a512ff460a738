"""Images as arrays: read from IDX or .npz files that the caller names, or the digits embedded in scikit-learn.

Whatever the container, images end as (n, 28, 28) uint8, or float32 in [0, 1] where the source holds floats. Files are
taken for hostile: declared sizes are checked before anything is read, reading is bounded, and pickle is never read.
"""

import hashlib
import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae.settings import UserError

IMAGE_SHAPE = (28, 28)
MAX_BYTES = 5 * 2**27  # of one array of images in memory: 640 MiB, 14 times MNIST's 60,000 as bytes
MAX_COUNT = MAX_BYTES // math.prod(IMAGE_SHAPE)  # images, and so labels, in one IDX file
CHUNK = 2**20  # bytes that are read at a time, so that a header that lies costs no memory
MAX_MEMBERS = 10**4  # of one gzip file: one is usual, and a block of 64 KiB each where it was made for random access
NPY_HEADER = 2**10  # bytes: 118 are usual, and some thousands could exhaust Python's parser

# The four files of MNIST and of every set in its form: images and labels to train on, images and labels to test on.
IDX_STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_IMAGES, IDX_LABELS = 0x0803, 0x0801  # magic numbers: unsigned bytes in 3 dimensions and in 1
NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
LAYOUTS = ("", "MNIST/raw", "FashionMNIST/raw", "raw")  # where a folder may hold the files; torchvision's are inside


class Dataset(NamedTuple):
    """Images and labels to train and to test on."""

    name: str  # fit for the name of a folder
    train_images: np.ndarray  # (n, 28, 28) uint8, or float32 in [0, 1]
    train_labels: np.ndarray | None  # (n,) uint8 or int64
    test_images: np.ndarray
    test_labels: np.ndarray | None
    sha256: str  # of the images as arrays: the same whatever container they came in
    source: str  # in words
    warning: str | None = None  # what nobody must miss


Labelled = tuple[np.ndarray, np.ndarray | None]  # images, and labels where there are any


def load(name: str, path: Path | None, source: str, warning: str | None = None) -> Dataset:
    """Read the folder with IDX files or the .npz file at `path`, or, where that is None, the embedded digits.

    The other arguments are kept with the images. Raises UserError for files that are missing, harmed or hostile.
    """
    try:
        if path is None:
            train, test = _digits()
        else:
            train, test = _read_folder(path) if path.is_dir() else _read_npz(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check it and its permissions") from error
    return Dataset(name, *train, *test, _fingerprint(train[0], test[0]), source, warning)


def split(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, np.ndarray | None]:
    """Hold out that share of the training images, chosen by `seed`: the data set without them, and they, (n, 28, 28).

    Raises UserError where no image would be left on one side.
    """
    if share == 0:
        return dataset, None
    count = len(dataset.train_images)
    held = round(share * count)
    if not 0 < held < count:
        raise UserError(
            f"--validation-split {share:g}: of {count:,} training images that holds out {held:,}; change it"
        )
    order = np.random.default_rng(seed).permutation(count)
    out, rest = np.sort(order[:held]), np.sort(order[held:])
    labels = None if dataset.train_labels is None else dataset.train_labels[rest]
    return dataset._replace(train_images=dataset.train_images[rest], train_labels=labels), dataset.train_images[out]


def pixels(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1]: bytes are divided by 255, floats stay as they are."""
    return images / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32, copy=False)


def _fingerprint(*parts: np.ndarray) -> str:
    digest = hashlib.sha256()
    for images in parts:
        digest.update(f"{images.shape} {images.dtype}".encode())
        for start in range(0, len(images), 1000):  # by pieces that fit in a cache: arrays may lie column by column
            digest.update(np.ascontiguousarray(images[start : start + 1000].copy(order="K")))
    return digest.hexdigest()


# IDX, the format of MNIST's own files (http://yann.lecun.com/exdb/mnist)


def _read_folder(path: Path) -> tuple[Labelled, Labelled]:
    folder = _idx_folder(path)
    found = [_find(folder, stem) for stem in IDX_STEMS]
    lacking = [stem for stem, file in zip(IDX_STEMS, found, strict=True) if file is None]
    if lacking not in ([], [stem for stem in IDX_STEMS if "labels" in stem]):
        raise UserError(f"{folder}: lacks {' and '.join(lacking)} (.gz or not); add what is missing")
    return _read_pair(*found[:2]), _read_pair(*found[2:])


def _idx_folder(path: Path) -> Path:
    """The folder at `path` or, as torchvision has it, inside, that holds IDX files; `path` itself if none does."""
    holding = [path / inner for inner in LAYOUTS if any(_find(path / inner, stem) for stem in IDX_STEMS)]
    if len(holding) > 1 and path not in holding:
        raise UserError(f"{path}: holds several data sets ({' and '.join(map(str, holding))}); name one of these")
    return holding[0] if holding else path


def _find(folder: Path, stem: str) -> Path | None:
    names = [name + end for name in (stem, stem.replace("-idx", ".idx")) for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_pair(image_path: Path, label_path: Path | None) -> Labelled:
    images = _as_pixels(f"{image_path}:", _read_idx(image_path, IDX_IMAGES, IMAGE_SHAPE))
    labels = None if label_path is None else _read_idx(label_path, IDX_LABELS, ())
    if labels is not None and len(labels) != len(images):
        what = f"holds {len(labels):,} labels for the {len(images):,} images in {image_path.name}"
        raise UserError(f"{label_path}: {what}; take both files from one data set")
    return images, labels


def _read_idx(path: Path, magic: int, item_shape: tuple[int, ...]) -> np.ndarray:
    """All items of a file of bytes, gzipped or not: (n, *item_shape) uint8."""
    try:
        with open(path, "rb") as raw:
            # Gzip is told by content: browsers unpack .gz files and keep the name.
            file = _Gunzip(raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            count = _idx_count(path, _read_up_to(file, 8 + 4 * len(item_shape)), magic, item_shape)
            size = count * math.prod(item_shape)
            content = _read_up_to(file, size + 1)
    except (EOFError, zlib.error) as error:
        reason = str(error).replace("incorrect data check", "its CRC is wrong")
        raise UserError(f"{path}: is truncated or corrupt ({reason}); get a fresh copy of it") from error
    if len(content) != size:
        what = "goes on after" if len(content) > size else f"is truncated: it holds {len(content):,} bytes of"
        raise UserError(f"{path}: {what} the {size:,} that its header declares; get a fresh copy of it")
    return np.frombuffer(content, np.uint8).reshape(count, *item_shape)


def _idx_count(path: Path, header: bytes, magic: int, item_shape: tuple[int, ...]) -> int:
    """The number of items that the header declares, once the rest of it is as expected."""
    if not header:
        raise UserError(f"{path}: is empty; get a fresh copy of it")
    if int.from_bytes(header[:4]) != magic:
        what = f"begins with the magic number 0x{header[:4].hex()}, expected 0x{magic:08x}"
        raise UserError(f"{path}: {what}; check that it is the file that its name says")
    if len(header) < 8 + 4 * len(item_shape):
        raise UserError(f"{path}: is truncated: it ends within its header; get a fresh copy of it")
    count, *found_shape = struct.unpack(f">{1 + len(item_shape)}I", header[4:])
    if found_shape != list(item_shape):
        what = f"holds images of {' x '.join(map(str, found_shape))} pixels, expected 28 x 28"
        raise UserError(f"{path}: {what}; scale or crop them first")
    if not 1 <= count <= MAX_COUNT:
        kind = "images" if item_shape else "labels"
        raise UserError(f"{path}: declares {count:,} {kind}, expected 1 to {MAX_COUNT:,}; check the file")
    return count


class _Gunzip:
    """The content of a gzip file. Python's own reader takes 0.2 s a MB for empty members, or for an endless name."""

    def __init__(self, raw: io.BufferedReader):
        self._raw = raw
        self._input = b""
        self._engine = zlib.decompressobj(31)  # 31: gzip, whose checksum zlib looks at
        self._members = 1

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end; zlib.error where the file is corrupt, EOFError where it is truncated."""
        content = b""
        while not content:
            self._input = self._input or self._raw.read(2**14)
            if self._engine.eof:
                if not self._input:
                    return b""
                self._input = self._input.lstrip(b"\0")  # members may be padded
                if self._input:
                    self._begin_member()
                continue
            if not self._input:
                raise EOFError("it ends before its end marker")
            content = self._engine.decompress(self._input, size)
            self._input = self._engine.unconsumed_tail or self._engine.unused_data
        return content

    def _begin_member(self) -> None:
        self._engine = zlib.decompressobj(31)
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise zlib.error(f"more than {MAX_MEMBERS:,} gzip members")


def _read_up_to(file: io.BufferedIOBase | _Gunzip, size: int) -> bytearray:
    content = bytearray()
    while len(content) < size and (chunk := file.read(min(CHUNK, size - len(content)))):
        content += chunk
    return content


# .npz, the format of numpy.savez and of Keras's copy: a zip archive of .npy files, each a header and an array


def _read_npz(path: Path) -> tuple[Labelled, Labelled]:
    try:
        with zipfile.ZipFile(path) as archive:
            present = archive.namelist()
            lacking = [name for name in NPZ_ARRAYS if f"{name}.npy" not in present]
            if lacking not in ([], ["y_train", "y_test"]):
                what = f"lacks {' and '.join(lacking)} (it holds {str(present)[:200]})"
                raise UserError(f"{path}: {what}; save it with x_train, x_test and, if wanted, y_train and y_test")
            train, test = (_read_npz_pair(path, archive, part, not lacking) for part in ("train", "test"))
            return train, test
    # RuntimeError: an encrypted archive, or one in a form that Python lacks
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, struct.error) as error:
        reason = str(error).partition("\n")[0][:200] or "truncated"
        raise UserError(f"{path}: cannot be read as .npz ({reason}); write it with numpy.savez") from error


def _read_npz_pair(path: Path, archive: zipfile.ZipFile, part: str, labelled: bool) -> Labelled:
    where = f"{path}: x_{part}"
    images = _read_npy(where, archive.getinfo(f"x_{part}.npy"), archive)
    images = _as_pixels(where, images.reshape(-1, *IMAGE_SHAPE))
    if not labelled:
        return images, None
    labels = _read_npy(f"{path}: y_{part}", archive.getinfo(f"y_{part}.npy"), archive, count=len(images))
    return images, labels if labels.dtype == np.uint8 else labels.astype(np.int64)


def _read_npy(where: str, member: zipfile.ZipInfo, archive: zipfile.ZipFile, count: int | None = None) -> np.ndarray:
    """One array of the archive: `count` labels, or else images, (n, 28, 28) or (n, 28, 28, 1), of any number type."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA takes what memory it declares
        raise UserError(f"{where} is compressed in an unusual way; write it with numpy.savez or savez_compressed")
    with archive.open(member) as file:
        header = io.BytesIO(file.read(12 + NPY_HEADER))
        shape, fortran, dtype = _read_npy_header(header)
        _check_type(where, dtype, "biuf" if count is None else "iu")
        _check_shape(where, shape, count)
        size = math.prod(shape) * dtype.itemsize
        taken = max(size, 4 * math.prod(shape) if dtype.kind in "bf" else 0)  # truth values become floats
        if taken > MAX_BYTES:
            what = f"declares {taken:,} bytes, more than {MAX_BYTES:,}"
            raise UserError(f"{where} {what}; save fewer images, or as uint8")
        if header.tell() + size != member.file_size:
            raise UserError(f"{where} declares {size:,} bytes, but the archive another size; write it with numpy.savez")
        content = bytearray(header.read())
        content += _read_up_to(file, size - len(content))
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _read_npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, whether column by column, and the type of the array that follows; ValueError for any other text."""
    first_version = np.lib.format.read_magic(file) == (1, 0)  # 3.0 differs from 2.0 in names of fields alone
    read = np.lib.format.read_array_header_1_0 if first_version else np.lib.format.read_array_header_2_0
    try:
        return read(file, NPY_HEADER)
    except Exception as error:  # numpy asks Python's parser and tokenizer, each with errors of its own
        raise ValueError(f"an array's header makes no sense: {error}") from error


def _check_type(where: str, dtype: np.dtype, kinds: str) -> None:
    if dtype.hasobject:
        raise UserError(f"{where} holds pickled objects, which are never read; save it as a plain array")
    if dtype.kind not in kinds:
        raise UserError(
            f"{where} is of type {dtype.name}; save {'floats or bytes' if 'f' in kinds else 'whole numbers'}"
        )


def _check_shape(where: str, shape: tuple[int, ...], count: int | None) -> None:
    if count is not None and shape != (count,):
        raise UserError(f"{where} has shape {shape}, expected {(count,)}, a label for each image; correct it")
    if count is None and shape[1:] not in (IMAGE_SHAPE, (*IMAGE_SHAPE, 1)):
        raise UserError(f"{where} has shape {shape}, expected (n, 28, 28) or (n, 28, 28, 1); scale or crop the images")
    if shape[0] < 1:
        raise UserError(f"{where} holds no images; save at least one")


def _as_pixels(where: str, images: np.ndarray) -> np.ndarray:
    """Images of any number type as uint8 or float32; UserError where a pixel lies outside 0..255 or [0, 1]."""
    if images.dtype.kind == "b":
        return images.astype(np.float32)
    least, most = images.min().item(), images.max().item()
    if images.dtype.kind == "f":
        if not (least >= 0 and most <= 1):  # NaN fails too
            what = f"has pixels that are {'NaN' if math.isnan(least) else f'from {least} to {most}'}"
            raise UserError(f"{where} {what}; floats must lie in 0..1: scale them")
        return images.astype(np.float32, copy=False)
    if least < 0 or most > 255:
        raise UserError(f"{where} has pixels from {least} to {most}; whole numbers must lie in 0..255: scale them")
    if most == 1:  # binary images, which a division by 255 would turn black
        raise UserError(f"{where} has pixels of 0 or 1 out of 255, all but black; multiply by 255, or save as floats")
    return images.astype(np.uint8, copy=False)


# The digits embedded in scikit-learn


def _digits() -> tuple[Labelled, Labelled]:
    """1,797 real digits, 1,500 of them to train on, brought smoothly from 8 x 8 pixels to the look of MNIST."""
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    # Bilinear interpolation as a matrix: the 8 pixels spread over the middle 20 of 28, where MNIST has its digits, and
    # fade into black around them. Row i of the large image lies at position[i] of the small one, centre to centre.
    position = (np.arange(28) - 13.5) * 8 / 20 + 3.5
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(8)))  # (28, 8)
    large = weights @ small.reshape(-1, 8, 8) @ weights.T  # (1797, 28, 28)
    images, labels = np.rint(large * (255 / 16)).astype(np.uint8), labels.astype(np.uint8)
    return (images[:1500], labels[:1500]), (images[1500:], labels[1500:])
