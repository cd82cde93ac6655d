"""Folders that other processes write, have left half moved, or pretend to have."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from weights.kills import files_in

from underdraw.errors import InputError, WeightError
from underdraw.formats import leftovers
from underdraw.formats.writing import write_file, writing_file
from underdraw.models import UNet2DConditionModel
from underdraw.schedulers import DDIMScheduler
from underdraw.weights import hub, replacing, save
from underdraw.weights.atomic import writing_folder
from underdraw.weights.folders import component_files, open_weights
from underdraw.weights.replacing import JOURNAL, LIST, NEW, OLD, settle


def write(folder, value, count=3):
    tensors = {f"w{i}": np.full(10, value, "f4") for i in range(count)}
    save.save_weights(folder, tensors, max_shard_size=40, config={"value": value})


def value_in(folder):
    hub.resolve(folder)
    (value,) = {int(t.load()[0]) for t in open_weights(folder, component_files(folder)).values()}
    assert json.loads((folder / "config.json").read_text()) == {"value": value}
    return value


# One process that kills itself at a rename, for each number it is told.
KILLED = """
import os, signal, sys
from weights.test_replacing import write
from pathlib import Path
for number in map(int, sys.argv[2:]):
    if os.fork():
        os.wait()
        continue
    done, replace, rename = [0], os.replace, os.rename
    def counted(original):
        def call(*args):
            done[0] += 1
            if done[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)
        return call
    os.replace, os.rename = counted(replace), counted(rename)
    write(Path(sys.argv[1], str(number)), 2, 4)
    os._exit(0)
"""


def run(code, *arguments, **options):
    path = os.pathsep.join([*sys.path, os.path.dirname(os.path.dirname(__file__))])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        **options,
    )


def test_processes_that_are_really_killed(tmp_path):
    numbers = range(1, 15)
    for number in numbers:
        write(tmp_path / str(number), 1)
    before = files_in(tmp_path / "1")
    process = run(KILLED, tmp_path, *numbers)
    process.communicate(timeout=300)
    assert process.returncode == 0
    found = {}
    for number in numbers:
        place = tmp_path / str(number)
        journal = (place / JOURNAL).exists()
        found[number] = value_in(place), journal
        assert found[number][0] == 2 or not set(before.items()) - set(files_in(place).items())
        write(place, 3)
        assert value_in(place) == 3
        assert not [p for p in files_in(place) if p.startswith(".")]
    assert (1, False) in found.values()
    assert sum(journal for _, journal in found.values()) > 5  # these were finished when read
    assert found[numbers[-1]] == (2, False)


WAITING = """
import sys
from pathlib import Path
from underdraw.formats.writing import writing_file
from underdraw.weights.atomic import writing_folder
with writing_folder(sys.argv[1]) as new, writing_file(sys.argv[2]) as file:
    file.write(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_what_a_living_process_writes_is_left_alone_and_what_a_dead_one_left_goes(tmp_path):
    folder, path = tmp_path / "model", tmp_path / "file.bin"
    write(folder, 1)
    write_file(path, b"old")
    process = run(WAITING, folder, path, stdin=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"

    def unfinished():
        names = [*os.listdir(tmp_path), *os.listdir(folder)]
        return sorted(name for name in names if leftovers.NAME.fullmatch(name))

    held = unfinished()
    assert [name.partition("-")[0] for name in held] == [".file.bin.saving", ".model.saving"]
    write(folder, 2)
    write_file(path, b"new")
    assert unfinished() == held
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    write(folder, 3)
    write_file(path, b"newer")
    assert not unfinished()
    assert (value_in(folder), path.read_bytes()) == (3, b"newer")


def half_moved(folder, count=2):
    """The state in which a process was killed after `count` moves."""
    write(folder, 1)

    class Killed(BaseException):
        pass

    left, replace = [count + 1], os.replace

    def counted(*args):
        left[0] -= bool(JOURNAL in str(args[0]) or JOURNAL in str(args[1]))
        if left[0] <= 0:
            raise Killed
        replace(*args)

    os.replace = counted
    try:
        with pytest.raises(Killed):
            write(folder, 2)
    finally:
        os.replace = replace
    assert (folder / JOURNAL).is_dir()
    return folder


def test_every_way_to_a_half_moved_folder_finds_it_whole(tmp_path):
    ways = {
        "itself": lambda f: settle(f / "unet"),
        "from above": lambda f: settle(f),
        "as a part": lambda f: hub.resolve(f, subfolder="unet"),
        "by a save": lambda f: write(f / "unet", 2),
        "by a config": lambda f: DDIMScheduler().save_pretrained(f / "unet"),
        "by a save above": lambda f: save.save_weights(f, {"a": np.ones(1)}),
    }
    for name, way in ways.items():
        way((half_moved(tmp_path / name / "unet")).parent)
        assert value_in(tmp_path / name / "unet") == 2, name
        assert not (tmp_path / name / "unet" / JOURNAL).exists()
    half_moved(tmp_path / "whole")  # and by who reads what lies in it
    (tmp_path / "whole" / "vae").mkdir()
    settle(tmp_path / "whole" / "vae")
    assert value_in(tmp_path / "whole") == 2


def test_readers_wait_for_a_process_that_moves_files_and_no_longer(tmp_path, monkeypatch):
    folder = half_moved(tmp_path / "model")
    monkeypatch.setattr(replacing, "PAUSE", 0)
    with open(folder / JOURNAL / leftovers.LOCK, "rb") as lock:
        assert leftovers.hold(lock, folder / JOURNAL / leftovers.LOCK)
        with pytest.raises(WeightError, match="another process is writing into it"):
            hub.resolve(folder)
    assert value_in(folder) == 2


def test_where_files_cannot_be_moved_nothing_loads_and_it_is_said(tmp_path, monkeypatch):
    folder = half_moved(tmp_path / "model")

    def refuse(*_):
        raise PermissionError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(
            WeightError, match=r"a save was interrupted.*Read-only.*New ones are in"
        ):
            UNet2DConditionModel.from_pretrained(folder)
    assert value_in(folder) == 2


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ("../outside.txt", "is no file of the folder"),
        ("a/../../outside.txt", "is no file of the folder"),
        ("/etc/outside.txt", "is no file of the folder"),
        ("C:/outside.txt", "is no file of the folder"),
        ("..\\outside.txt", "is no file of the folder"),
        ("link/outside.txt", "lies outside, by a link"),
        (7, "is no file of the folder"),
        (None, "is not a list of files"),
    ],
)
def test_a_journal_from_elsewhere_moves_nothing_outside(tmp_path, listed, says):
    folder, outside = tmp_path / "model", tmp_path / "home"
    outside.mkdir()
    (outside / "outside.txt").write_text("mine")
    (tmp_path / "outside.txt").write_text("mine")
    write(folder, 1)
    for part in (NEW, OLD):
        (folder / JOURNAL / part / "link").mkdir(parents=True)
        (folder / JOURNAL / part / "link" / "outside.txt").write_text("theirs")
    (folder / "link").symlink_to(outside)
    (folder / JOURNAL / leftovers.LOCK).touch()
    told = None if listed is None else [listed]
    (folder / JOURNAL / LIST).write_text(json.dumps({"new": told, "gone": told}))
    before = files_in(tmp_path)
    with pytest.raises(WeightError, match=says):
        hub.resolve(folder)
    assert files_in(tmp_path) == before


def test_a_journal_of_somebody_else_moves_nothing(tmp_path, monkeypatch):
    """As in a folder that all may write into."""
    folder = half_moved(tmp_path / "model")
    before, lstat = files_in(folder), os.lstat

    def of_another(path, **options):
        found = list(lstat(path, **options))
        found[4] += 1 if str(path).endswith(JOURNAL) else 0
        return os.stat_result(found)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", of_another)
        settle(folder)
        assert files_in(folder) == before
        with pytest.raises(OSError, match=JOURNAL):
            write(folder, 3)
    assert files_in(folder) == before
    assert value_in(folder) == 2


def test_leftovers_are_told_by_their_whole_name(tmp_path):
    """A user's files are none, nor are those of another name, links and pipes."""
    kept = [".x.saving", ".x.saving-0123", ".x.saving-012345678", "x.saving-01234567"]
    kept += [".y.saving-01234567", ".x.saving-01234567.txt", ".x.json.saving-01234567"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".x.saving-0000000a").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / ".x.saving-0000000b")
    dead = tmp_path / ".x.saving-0000000c"
    for path in (dead / "new", tmp_path / ".x.saving-0000000d"):  # with and without anything in it
        path.mkdir(parents=True)
    (dead / "new" / "weights").write_text("half")
    (tmp_path / ".x.saving-0000000e").write_text("half")
    write_file(tmp_path / "x", b"new")
    there = sorted([*kept, "mine", "x", ".x.saving-0000000a", ".x.saving-0000000b"])
    assert sorted(os.listdir(tmp_path)) == there


def test_leftovers_of_parts_go_with_the_whole_and_reversed(tmp_path):
    def leave(*parts):
        place = tmp_path.joinpath(*parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("half")
        return place

    dead = [leave(".pipe.saving-01234567"), leave("pipe", ".pipe.saving-01234567")]
    dead += [leave("pipe", ".unet.saving-01234567"), leave("pipe", "unet", ".x.saving-01234567")]
    write(tmp_path / "pipe", 1)
    assert not any(path.exists() for path in dead)
    of_above = leave("pipe", ".pipe.saving-01234567")
    of_beside = leave("pipe", "vae", ".vae.saving-01234567")
    write(tmp_path / "pipe" / "unet", 1)
    assert (of_above.exists(), of_beside.exists()) == (False, True)


def test_a_folder_stays_the_same_one(tmp_path, monkeypatch):
    """Saving into the folder one works in, or into a mount point, exchanges files, not folders."""
    (tmp_path / "sub").mkdir()
    before = tmp_path.stat().st_ino, (tmp_path / "sub").stat().st_ino
    monkeypatch.chdir(tmp_path)
    for value in (1, 2):
        write(".", value)
        write("sub", value)
    assert (tmp_path.stat().st_ino, (tmp_path / "sub").stat().st_ino) == before
    assert os.getcwd() == str(tmp_path)
    assert value_in(tmp_path) == value_in(tmp_path / "sub") == 2


def test_folders_and_files_in_each_others_places(tmp_path):
    write(tmp_path / "model", 1)
    before = files_in(tmp_path)
    with (
        pytest.raises(InputError, match=r"config\.json is a file; a folder"),
        writing_folder(tmp_path / "model") as new,
    ):
        (new / "config.json").mkdir()
        (new / "config.json" / "a.txt").write_text("a")
    (tmp_path / "model" / "notes.txt").mkdir()
    with (
        pytest.raises(InputError, match=r"notes\.txt is a folder; a file"),
        writing_folder(tmp_path / "model") as new,
    ):
        (new / "notes.txt").write_text("a")
    assert files_in(tmp_path) == before


def test_two_savers_of_a_new_folder(tmp_path):
    """The second one finds the folder that the first has made meanwhile."""
    target = tmp_path / "model"
    with writing_folder(target) as first:
        (first / "config.json").write_text("first")
        (first / "a.txt").write_text("first")
        with writing_folder(target) as second:
            (second / "config.json").write_text("second")
            (second / "b.txt").write_text("second")
    texts = {name: text.decode() for name, text in files_in(target).items()}
    assert texts == {"config.json": "first", "a.txt": "first", "b.txt": "second"}
    assert os.listdir(tmp_path) == ["model"]


def test_disks_without_locks(tmp_path, monkeypatch):
    """Saving works, and nothing is taken for a leftover that may be another's."""

    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(leftovers.fcntl, "flock", none)
    (tmp_path / ".model.saving-01234567").mkdir()
    (tmp_path / ".model.saving-01234567" / leftovers.LOCK).touch()
    for value in (1, 2):
        write(tmp_path / "model", value)
        assert value_in(tmp_path / "model") == value
    with writing_file(tmp_path / "x") as file:
        file.write(b"x")
    assert sorted(os.listdir(tmp_path)) == [".model.saving-01234567", "model", "x"]


def test_systems_without_locks_move_closed_files(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "fcntl", None)
    monkeypatch.setattr(leftovers, "CAN_LOCK", False)
    replace, files, opened = os.replace, [], open

    def remembered(*args):
        files.append(opened(*args))
        return files[-1]

    def closed(source, target):
        assert files[-1].closed and str(files[-1].name) == str(source)
        replace(source, target)

    monkeypatch.setattr("builtins.open", remembered)
    monkeypatch.setattr(os, "replace", closed)
    write_file(tmp_path / "x", b"old")
    write_file(tmp_path / "x", b"new")
    monkeypatch.undo()
    assert files_in(tmp_path) == {"x": b"new"}
