"""The folder of all runs: names, numbers, and which run is found."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, refuse, snapshot
from tiny_runs import write_config

from vae import runs
from vae.run import Run
from vae.settings import complete


def create(name: str | None = None) -> str:
    return runs.create_folder(complete({"name": name}), "tiny").name


@pytest.mark.parametrize("name", ["", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "a\n", "é", "pretrained", "a" * 101])
def test_a_name_that_is_no_plain_folder_name_is_refused(name):
    assert "--name" in refuse(Run.new, {"name": name})


def test_a_name_that_exists_is_refused(root):
    write_config(root / "My_run-2.1")
    before = snapshot(root)
    assert str(root / "My_run-2.1") in refuse(Run.new, {"name": "My_run-2.1"})
    assert "exists; take another --name" in refuse(create, "My_run-2.1")  # another process took it in the meantime
    assert snapshot(root) == before


def test_a_run_gets_the_next_free_number(root):
    assert [create(), create()] == ["standard-tiny-001", "standard-tiny-002"]
    (root / "standard-tiny-003").mkdir()
    assert create() == "standard-tiny-004"


def test_runs_that_begin_together_get_folders_of_their_own(root):
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(create, [None] * 50))) == 50


@pytest.mark.parametrize("place", ["file", "file/runs"])
def test_a_folder_of_runs_that_cannot_be_made(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VAE_CHECKPOINTS", str(tmp_path / place))
    assert str(tmp_path / place) in refuse(create, "mine")


def test_runs_are_saved_in_the_project_unless_moved(monkeypatch):
    monkeypatch.setenv("VAE_CHECKPOINTS", "~/elsewhere")
    assert runs.find_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("VAE_CHECKPOINTS")
    assert runs.find_root() == ROOT / "checkpoints"


# Find


def test_the_run_that_finished_last_by_its_own_record_is_found_else_the_shipped_model(root):
    shipped = ROOT / "checkpoints" / "pretrained"
    write_config(root / "z")
    write_config(root / "pretrained", finished="3000")
    assert Run.find(None).folder == shipped and Run.find(None).settings.network == "standard"
    times = {"c": "2024-05-06T10:00:00.000000+00:00", "a": "2025-01-02T09:00:00.000001+00:00"}
    for name, end in (times | {"b": "2025-01-02T09:00:00.000000+00:00"}).items():
        write_config(root / name, finished=end)
    os.utime(root / "c" / "config.json")
    assert Run.find(None).folder == root / "a"
    assert Run.find(str(root / "z")).folder == root / "z"


def test_a_folder_that_is_none_is_refused(root, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        assert f"--checkpoint {tmp_path / name}: no such folder" in refuse(Run.find, str(tmp_path / name))
        assert f"--resume {tmp_path / name}: no such folder" in refuse(Run.resume, str(tmp_path / name), {})
    assert f"there is no run in {root}" in refuse(Run.resume, "", {})


BAD = ["", "{", "[]", "{}", json.dumps({"settings": {"network": "none"}}), json.dumps({"settings": []})]


@pytest.mark.parametrize("content", BAD)
def test_a_bad_config_is_refused_and_does_not_matter_to_others(root, content):
    good = write_config(root / "good", finished="2020")
    path = write_config(root / "bad") / "config.json"
    path.write_text(content)
    assert f"{path} cannot be read, or is not of a run" in refuse(Run.find, str(root / "bad"))
    assert Run.find(None).folder == good
    path.unlink()
    assert "no config.json" in refuse(Run.find, str(root / "bad"))


def test_the_newest_unfinished_run_is_resumed_else_the_one_that_finished_last(root):
    write_config(root / "done", finished="2020")
    assert runs.find_resumable() == root / "done"
    older, newer = (write_config(root / name) for name in ("older", "newer"))
    os.utime(older / "config.json", ns=(1, 1))
    assert runs.find_resumable() == newer
    with runs.lock(newer):  # it is in training at this moment
        assert runs.find_resumable() == older
        assert "another process trains there" in refuse(runs.lock(newer).__enter__)
