"""The folder of all runs: names, numbers, and which run is found."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, refuse, snapshot
from tiny_runs import CONFIG, DATASET, Model, new, train, write_config

from vae import runs
from vae.run import Run

# Names and folders


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-x", "a/b", "../a", "/a", "a\\b", "a b", "a\n", "é", "pretrained", "a" * 101, "a\0"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_name_that_is_no_plain_folder_name_is_refused(name, overwrite):
    assert "--name" in refuse(Run.new, {"name": name, "overwrite": overwrite})


def test_a_name_that_exists_is_refused_unless_it_may_be_overwritten(root):
    late = Run.new({"name": "My_run-2.1"})  # another process takes the name after it was checked
    folder = write_config(root / "My_run-2.1")
    before = snapshot(root)
    message = refuse(Run.new, {"name": "My_run-2.1"})
    assert str(folder) in message and "--overwrite" in message
    assert "exists by now" in refuse(late.begin(Model(), DATASET).__enter__)
    assert snapshot(root) == before
    with Run.new({"name": "My_run-2.1", "overwrite": True}).begin(Model(), DATASET):
        assert snapshot(root) == before
    assert snapshot(root) == before


def test_numbers_go_on_from_the_highest(root):
    def begin() -> str:
        with (one := new()).begin(Model(), DATASET):
            return one.folder.name

    assert [begin(), begin()] == ["standard-tiny-001", "standard-tiny-002"]
    for name in ("tiny-041", "tiny-x99", "tiny-b-077", "tiny-099-old", "x-standard-tiny-88"):
        (root / f"standard-{name}").mkdir()
    assert begin() == "standard-tiny-042"
    (root / "standard-tiny-999").mkdir()
    assert begin() == "standard-tiny-1000"


def test_runs_that_begin_together_get_folders_of_their_own(root):
    model = Model()

    def begin(_) -> str:
        with (one := new()).begin(model, DATASET):
            return one.folder.name

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(begin, range(20))) == [f"standard-tiny-{number:03d}" for number in range(1, 21)]


@pytest.mark.parametrize("name", [None, "mine"])
@pytest.mark.parametrize("place", ["file", "file/runs"])
def test_a_folder_of_runs_that_cannot_be_made(tmp_path, monkeypatch, name, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VAE_CHECKPOINTS", str(tmp_path / place))
    message = refuse(new(name=name).begin(Model(), DATASET).__enter__)
    assert str(tmp_path / place) in message and "VAE_CHECKPOINTS" in message


def test_runs_are_saved_in_the_project_unless_moved(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAE_CHECKPOINTS", "~/elsewhere")
    assert runs.runs_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("VAE_CHECKPOINTS")
    assert runs.runs_folder() == ROOT / "checkpoints"


# Find


def test_the_run_that_finished_last_by_its_own_record_is_found(root):
    times = {"c": "2024-05-06T10:00:00.000000+00:00", "a": "2025-01-02T09:00:00.000001+00:00"}
    for name, end in (times | {"b": "2025-01-02T09:00:00.000000+00:00", "z": None}).items():
        write_config(root / name, finished=end)
    os.utime(root / "c" / "config.json")
    assert Run.find(None).folder == root / "a"
    assert Run.find(str(root / "z")).folder == root / "z"


def test_the_shipped_model_is_found_where_no_run_has_finished(root):
    shipped = ROOT / "checkpoints" / "pretrained"
    assert Run.find(None).folder == shipped  # not even the folder of runs is there
    write_config(root / "a")
    write_config(root / "pretrained", finished="3000")
    assert Run.find(None).folder == shipped
    assert (Run.find(None).settings.network, Run.find(None).settings.likelihood) == ("standard", "bernoulli")


def test_a_folder_that_is_none_is_refused(root, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        message = refuse(Run.find, str(tmp_path / name))
        assert f"--checkpoint {tmp_path / name}" in message and str(root) in message
        assert f"--resume {tmp_path / name}" in refuse(Run.resume, str(tmp_path / name), {})
    assert "there is no run in" in refuse(Run.resume, "", {})


BAD_CONFIGS = {
    "": "not JSON",
    "{": "not JSON",
    "[]": "format None",
    "{}": "format None",
    '{"format": 99}': f"format 99, and this program reads {runs.FORMAT}",
    json.dumps({"format": ["x\n"] * 10**4}): "has format ['x",  # it was shown in full
    json.dumps(CONFIG | {"finished": ["3000"]}): "finished is missing or wrong",
    json.dumps(CONFIG | {"settings": []}): "settings is missing or wrong",
    json.dumps(CONFIG | {"settings": {"data": None}}): "settings.binarize is missing or wrong",
    json.dumps(CONFIG | {"dataset": {"name": 3, "sha256": "0"}}): "dataset.name is missing or wrong",
    json.dumps(CONFIG | {"settings": CONFIG["settings"] | {"epochs": -1}}): "epochs cannot be -1",
}


@pytest.mark.parametrize("content, words", BAD_CONFIGS.items(), ids=BAD_CONFIGS.values())
def test_a_bad_config_is_refused_with_the_reason_and_does_not_matter_to_others(root, content, words):
    good = write_config(root / "good", finished="2020")
    path = write_config(root / "bad") / "config.json"
    path.write_text(content)
    (root / "worse" / "config.json").mkdir(parents=True)
    (root / "file").write_text("")
    message = refuse(Run.find, str(root / "bad"))
    assert str(path) in message and words in message
    assert Run.find(None).folder == good
    path.unlink()
    assert "no config.json" in refuse(Run.find, str(root / "bad"))


@pytest.mark.parametrize("end", ["2999-12-31T23:59:59+00:00", "2000", "soon", "9" * 30])
def test_a_run_that_ends_after_the_clock_was_set_back_is_still_the_last(root, end):
    """Another process may have written anything into its record."""
    write_config(root / "first", finished=end)
    for name in ("second", "third"):
        folder = train(new(name=name))
        assert Run.find(None).folder == (folder if end[0] == "2" else root / "first")


def test_the_newest_unfinished_run_is_resumed_else_the_one_that_finished_last(root):
    finished = train(new(name="mine"))
    assert Run.resume("", {}).folder == finished
    older, newer = new(name="older"), new(name="newer")
    for one in (older, newer):
        with one.begin(Model(), DATASET):
            pass
    os.utime(older.folder / "config.json", ns=(1, 1))
    (root / "odd" / ".lock").mkdir(parents=True)  # which cannot be locked
    shutil.copy(newer.folder / "config.json", root / "odd")
    assert Run.resume("", {}).folder == newer.folder
    with Run.resume(str(newer.folder), {}).begin(Model(), DATASET):  # it is in training at this moment
        assert Run.resume("", {}).folder == older.folder
    assert Run.resume(str(finished), {}).folder == finished
