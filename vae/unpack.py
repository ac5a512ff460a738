"""Turn an .npz, or a folder of IDX files, into .npy files, which --data reads piece by piece: python -m vae.unpack.

Only a piece of an array is in memory at a time, so there may be more images than memory holds.
"""

from collections.abc import Iterator
from pathlib import Path

from vae import files, terminal
from vae.data import convert, formats, layouts
from vae.terminal import UserError, as_path

LETTERS = {"images": "x", "labels": "y"}


def main(arguments: list[str] | None = None) -> None:
    """Command line -> .npy files."""
    about = "Turn images into .npy files, which main.py --data reads piece by piece."
    parser = terminal.Parser("-m vae.unpack", description=about)
    parser.add_argument("source", metavar="SOURCE", help="an .npz or a folder of IDX files, as main.py --data takes it")
    parser.add_argument("folder", metavar="FOLDER", help="a new folder, for x_train.npy and so on")
    options = parser.parse_args(arguments)
    folder = as_path(options.folder)
    arrays = open_arrays(as_path(options.source))
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror or error}); name a new folder") from error
    for role, pieces in arrays.items():
        part, kind = role.split("_")
        place = folder / f"{LETTERS[kind]}_{part}.npy"
        with files.replacing(place) as path, open(path, "wb") as file:
            file.writelines(pieces)
        print(f"-> {place} is written.")


def open_arrays(source: Path) -> dict[str, Iterator[bytes]]:
    """Return the content of an .npy file for each array, by role; UserError where there is nothing to unpack."""
    if not layouts.holds_something(source):
        raise UserError(f"{source}: there is no such file or folder; check the path")
    remarks = convert.Remarks()
    if source.suffix.lower() == ".npz" and source.is_file():
        names = layouts.find_arrays(source, remarks)
        return {role: formats.member_to_npy(source, name) for role, name in names.items()}
    found = {} if source.is_file() else layouts.find_files(source, remarks)
    if not found or not all(map(layouts.has_idx_name, found.values())):
        raise UserError(f"{source}: is neither an .npz nor a folder of IDX files; nothing else needs to be unpacked")
    return {role: formats.idx_to_npy(path) for role, path in found.items()}


if __name__ == "__main__":
    terminal.run(main)
