"""Feed harmed and hostile files to what reads such files: python benchmarks/fuzz.py (400 cases of each kind; minutes).

Each case harms one healthy file in one of the ways of `benchmarks/hostile.py`, and is a function of (seed, kind, its
number) alone, so that `--seed S --kinds KIND --first NUMBER --cases 1` repeats it. Its reader, called in this process,
must succeed or raise a `UserError` of one short line, within 10 seconds. Nothing may be executed, nothing written
outside the case's folder, and memory may not rise more than 2 GiB above what it was after the healthy files.
"""

import argparse
import contextlib
import faulthandler
import functools
import gc
import gzip
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main as trainer
import resume
from benchmarks import hostile
from vae import archive, checkpoint, console, data, download, latent
from vae.settings import UserError, complete

LIMIT = 10.0  # seconds for a case
MEMORY = 2 * 2**30  # bytes beyond a healthy run's
LONGEST = 600  # characters of a refusal
RARELY = 500  # cases, of which one is each of the rare kinds of harm
RUN = "0"
SETTINGS = complete({"hidden_dim": 8, "latent_dim": 3, "dataset": "digits", "epochs": 1})
NOTE = "history.csv is no kind: nothing reads it. A resumed run takes its rows from training_state.npz."

# The readers: what the scripts do with a file, given its path


def read_images(path: Path) -> None:
    """As `--data`: a folder of IDX files, or an .npz."""
    data.load(*download.find(None, str(path if path.suffix == ".npz" else path.parent)))


def read_config(path: Path) -> None:
    """As `--resume` does: the folders of runs, then the run's settings, then where its images are."""
    os.environ["VAE_CHECKPOINTS"] = str(path.parent.parent)
    checkpoint.choose(None)
    checkpoint.finished_now()
    config = checkpoint.read_config(path.parent)
    resume.settings({}, config, path.parent)
    if config["settings"]["data"] or config["dataset"]["name"] not in download.PUBLIC:  # which would be downloaded
        found = download.find_for_run(None, None, config)
        if found.path is not None:
            data.load(*found)


def read_prior(path: Path) -> None:
    """As `generator.py`: the mixture, drawn from with and without `--digit`, and `--manifold`."""
    arrays = archive.read_prior(path.parent)
    if arrays is None:
        return
    mixture = latent.mixture(arrays, SETTINGS["latent_dim"])
    for draw in (
        lambda rng: latent.draw_mixture(rng, 10, mixture, 1.0, None),
        lambda rng: latent.draw_mixture(rng, 10, mixture, 1.0, 7),
        lambda rng: latent.most_active(arrays, SETTINGS["latent_dim"]),
    ):
        try:
            draw(np.random.default_rng(0))
        except UserError as error:
            refused = error
    if "refused" in locals():
        raise refused


def read_state(path: Path) -> None:
    """As `--resume`: into a model that waits for it."""
    from vae import training

    arrays = archive.read_state(path.parent)
    if arrays:
        training.restore(vae(), arrays, RUN)


def read_model(path: Path) -> None:
    """As `generator.py` and `evaluate.py`: restored, checked, and applied once."""
    import keras

    try:
        if path.stem == "decoder":
            archive.load_model(path.parent, "decoder", (None,), [(28, 28)])(np.zeros((2, 3), np.float32))
        else:
            archive.load_model(path.parent, "encoder", (28, 28), [(None,), (None,)])(np.zeros((2, 28, 28), np.float32))
    finally:
        keras.utils.clear_session(free_memory=False)


class Kind(NamedTuple):
    """A kind of file: how it is read, and what may befall it."""

    read: Callable[[Path], None]
    harms: dict[str, hostile.Harm]
    rare: dict[str, hostile.Harm]


KINDS = {  # and the folders of the healthy files, which `make` fills
    "idx": Kind(read_images, hostile.IDX, hostile.RARE["idx"]),
    "gzip": Kind(read_images, hostile.GZIP, hostile.RARE["gzip"]),
    "npz": Kind(read_images, hostile.NPZ, hostile.RARE["npz"]),
    "config": Kind(read_config, hostile.CONFIG, hostile.RARE["config"]),
    "prior": Kind(read_prior, hostile.NPZ, hostile.RARE["arrays"]),
    "state": Kind(read_state, hostile.NPZ, hostile.RARE["arrays"]),
    "keras": Kind(read_model, hostile.KERAS, hostile.RARE["keras"]),
}


@functools.cache
def vae():
    """The model that a training state is restored into."""
    return trainer.make_model(SETTINGS, 10, shards=1)


def make(folder: Path) -> None:
    """Make a folder for each kind, with healthy files: a run of a model as it is before training, and 30 images."""
    from vae import training

    for name in KINDS:
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {"x_train": (20, 28, 28), "y_train": (20,), "x_test": (10, 28, 28), "y_test": (10,)}
    arrays = {name: rng.integers(0, 10 if name[0] == "y" else 256, shape, np.uint8) for name, shape in arrays.items()}
    for stem, array in zip(data.IDX_STEMS, arrays.values(), strict=True):
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        (folder / "idx" / stem).write_bytes(content)
        (folder / "gzip" / f"{stem}.gz").write_bytes(gzip.compress(content))
    np.savez_compressed(folder / "npz" / "images.npz", **arrays)

    dataset = data.Dataset("digits", arrays["x_train"], None, arrays["x_test"], None, "0", "")
    config = trainer.record(SETTINGS, dataset, None, vae(), {"run": RUN, "finished": None}) | {"epochs_done": 1}
    rows = [dict.fromkeys(training.fields("test_"), 1)]
    checkpoint.write_epoch(
        folder / "config", vae().encoder, vae().decoder, rows, config, training.state(vae(), rows, RUN)
    )
    for file, kind in (("encoder.keras", "keras"), ("decoder.keras", "keras"), ("training_state.npz", "state")):
        (folder / "config" / file).rename(folder / kind / file)
    (folder / "config" / "history.csv").unlink()
    mixture = latent.fit(rng.standard_normal((60, 3)), np.arange(60) % 10, 0)
    checkpoint.write_prior(folder / "prior", mixture._asdict() | {"activity": np.arange(3.0, dtype=np.float32)})


# The watch


class Hang(BaseException):
    """The time of a case is over. No `Exception`, so that few would catch it."""


class Watch:
    """What Python does while `folder` is set, the one place where files may be written."""

    folder: Path | None = None
    seen: ClassVar[list[str]] = []
    installed = False
    FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.startfile")
    FORBIDDEN += ("pickle.find_class", "socket.connect", "socket.getaddrinfo", "socket.bind")
    CHANGES = ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod")
    FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    @classmethod
    def hook(cls, event: str, arguments: tuple) -> None:
        if cls.folder is None:
            return
        writes = event in cls.CHANGES or (event == "open" and (arguments[2] or 0) & cls.FLAGS)
        named = arguments[: 1 if event == "open" else 2] if writes else ()
        places = [Path(os.path.abspath(os.fsdecode(name))) for name in named if isinstance(name, (str, bytes, Path))]
        outside = [str(place) for place in places if not place.is_relative_to(cls.folder)]
        if event in cls.FORBIDDEN or outside:
            cls.seen.append(f"{event} {outside or arguments!r:.200}")


def observe(read: Callable[[Path], None], path: Path, limit: float = LIMIT) -> tuple[str | None, list[str], float]:
    """Read the file, which lies in a folder of its own: return the refusal, the defects, and the seconds it took."""
    if not Watch.installed:  # it can never be removed
        sys.addaudithook(Watch.hook)
        Watch.installed = True
    sibling, refusal, failure, defects = path.parent.parent, None, None, []
    around = sorted(os.listdir(sibling))
    before = sys.dont_write_bytecode, signal.signal(signal.SIGALRM, _out_of_time), dict(os.environ), list(sys.path)
    sys.dont_write_bytecode = True  # what is imported late would write its bytecode elsewhere
    sys.path.append(str(sibling))  # where the module lies that must not be imported
    Watch.folder, Watch.seen = path.parent, []
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, limit, 1)  # again and again, as Keras catches everything
    try:
        read(path)
    except UserError as error:
        refusal = str(error)
    except Hang:
        pass
    except Exception as error:
        failure = error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        seconds, Watch.folder = time.perf_counter() - start, None
        sys.dont_write_bytecode, handler, environment, sys.path[:] = before
        signal.signal(signal.SIGALRM, handler)
        os.environ.update(environment)
    if failure is not None:
        last = traceback.extract_tb(failure.__traceback__)[-1]
        defects.append(f"{type(failure).__name__}: {failure!s:.200} ({Path(last.filename).name}, line {last.lineno})")
    if seconds > limit:
        defects.append(f"it took {seconds:.1f} s")
    if refusal is not None and (len(refusal.splitlines()) != 1 or len(refusal) > LONGEST):
        defects.append(
            f"a refusal of {len(refusal)} characters in {len(refusal.splitlines())} lines: {refusal[:200]!r}"
        )
    if sys.modules.pop(hostile.MODULE, None):
        defects.append(f"it imported {hostile.MODULE}")
    if sorted(os.listdir(sibling)) != around or os.path.lexists("/tmp/outside") or os.path.lexists("sprung"):
        defects.append("files appeared elsewhere")
    return refusal, defects + Watch.seen, seconds


def _out_of_time(number: int, frame) -> None:
    raise Hang


# The cases


class Case(NamedTuple):
    """A case, and what became of it."""

    kind: str
    number: int
    harm: str
    refusal: str | None
    defects: list[str]
    seconds: float


def run(
    kind: str, numbers: Iterable[int], seed: int, healthy: Path, folder: Path, limit: float = LIMIT
) -> Iterator[Case]:
    """Run the cases of these numbers, each in a folder that is made for it below `folder` and removed after it."""
    read, harms, rare = KINDS[kind]
    (folder / f"{hostile.MODULE}.py").write_text("")
    base = peak()
    for number in numbers:
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
        shutil.copytree(healthy / kind, folder / "case")
        path = hostile.pick(rng, sorted((folder / "case").iterdir()))
        is_rare = number % RARELY < len(rare)
        table, index = (rare, number % RARELY) if is_rare else (harms, number % len(harms))
        harm = list(table)[index]
        table[harm](path, rng)
        before = peak()
        refusal, defects, seconds = observe(read, path, limit)
        if peak() > max(before, base + MEMORY):
            defects.append(f"memory rose by {(peak() - base) / 2**30:.2f} GiB")
        shutil.rmtree(folder / "case")
        if is_rare:
            gc.collect()
        yield Case(kind, number, harm, refusal, defects, seconds)


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def table(cases: list[Case]) -> Iterator[str]:
    """A line for each kind of file and of harm."""
    yield "| kind of file | harm | cases | refused | accepted | slowest, s |\n|---|---|---|---|---|---|"
    for key in dict.fromkeys(sorted((case.kind, case.harm) for case in cases)):
        own = [case for case in cases if (case.kind, case.harm) == key]
        refused, slowest = sum(case.refusal is not None for case in own), max(case.seconds for case in own)
        yield f"| {' | '.join(key)} | {len(own)} | {refused} | {len(own) - refused} | {slowest:.2f} |"


def main() -> None:
    """Healthy files -> cases -> a table -> defects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400, help="cases of each kind (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all harm (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind (default: 0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of files (default: all)")
    options = parser.parse_args()
    faulthandler.enable()
    console.import_keras()
    numbers, cases = range(options.first, options.first + options.cases), []
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name).resolve()
        make(folder / "healthy")
        (folder / "cases").mkdir()
        for kind in options.kinds:
            for path in sorted((folder / "healthy" / kind).iterdir()):
                KINDS[kind].read(path)
        base = peak()
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 4 * MEMORY, -1))  # so that no defect takes the machine down
        for kind in options.kinds:
            for case in run(kind, numbers, options.seed, folder / "healthy", folder / "cases"):
                cases.append(case)
                faulthandler.dump_traceback_later(6 * LIMIT, exit=True)  # where even the alarm is not heard
                for defect in case.defects:
                    print(f"{kind}, {case.harm}, case {case.number}: {defect}", file=sys.stderr, flush=True)
    print(*table(cases), f"\n{NOTE}\n", sep="\n")
    defects = sum(bool(case.defects) for case in cases)
    print(
        f"{len(cases):,} cases, seed {options.seed}, numbers from {options.first}: {defects} with defects; "
        f"memory rose by {(peak() - base) / 2**30:.2f} GiB above a healthy run's."
    )
    sys.exit(1 if defects else 0)


if __name__ == "__main__":
    main()
