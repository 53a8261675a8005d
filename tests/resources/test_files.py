"""Files appear whole or not at all, and never in the place of what was read."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lightning_sanity
from lightning_sanity.resources import files
from lightning_sanity.resources.files import check_outputs, regular, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_the_folders_on_its_way(tmp_path):
    assert write_whole(tmp_path / "a" / "b" / "c.txt", "é\ud800").read_bytes() == "é\\ud800".encode()
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_a_new_file_has_the_permissions_of_any_other_new_file(tmp_path):
    (tmp_path / "usual").write_text("")
    write_whole(tmp_path / "ours", "")
    modes = {(tmp_path / name).stat().st_mode for name in ("usual", "ours")}
    assert len(modes) == 1


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    (tmp_path / "f").write_text("old")
    (tmp_path / "f").chmod(0o640)
    write_whole(tmp_path / "f", b"new")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    assert (tmp_path / "f").read_text() == "new"


def test_a_symbolic_link_is_followed_and_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "target")
    write_whole(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "target").read_text() == "x"


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path):
    write_whole(tmp_path / ("n" * 255), "x")
    assert names(tmp_path) == ["n" * 255]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    (tmp_path / "f").write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "f", "new")
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


@pytest.mark.parametrize("target", ["folder", "pipe", "/dev/null", "/dev/stdout", "/proc/self/fd/1", ""])
def test_only_a_regular_file_is_written(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"is no regular file|is a folder"):
        write_whole(target, "x")
    assert names(tmp_path) == ["folder", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_read_only_file_is_kept(tmp_path):
    (tmp_path / "f").write_text("old")
    (tmp_path / "f").chmod(0o444)
    with pytest.raises(PermissionError, match="read-only"):
        write_whole(tmp_path / "f", "new")


_KILLED = """
import os, sys
from lightning_sanity.resources import files
real = os.fsync
def stop(descriptor):
    print("half way", flush=True)
    sys.stdin.read()
os.fsync = stop
files.write_whole(sys.argv[1], "new")
"""


@pytest.fixture
def writing(tmp_path):
    """A process that has written its partial file and not renamed it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_sanity.__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path / "f")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment,
    )  # fmt: skip
    assert process.stdout.readline() == b"half way\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow  # a process of its own
def test_what_a_killed_writer_left_is_cleaned_up_and_what_a_living_one_writes_is_not(writing, tmp_path):
    partial = next(tmp_path.glob(".*.partial"))
    old = time.time() - 2 * files._YOUNG
    os.utime(partial, (old, old))
    write_whole(tmp_path / "f", "meanwhile")
    assert partial.exists()
    writing.send_signal(signal.SIGKILL)
    writing.wait()
    assert (tmp_path / "f").read_text() == "meanwhile"
    write_whole(tmp_path / "other", "x")
    assert partial.exists()  # it is no business of another file
    write_whole(tmp_path / "f", "again")
    assert names(tmp_path) == ["f", "other"]


# ---------------------------------------------------------------------------------------------- outputs against inputs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.json").write_text("kept")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "step=1.json").write_text("kept")
    (tmp_path / "link.json").symlink_to("in.json")
    os.link(tmp_path / "in.json", tmp_path / "hard.json")
    (tmp_path / "up").symlink_to(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "output",
    ["in.json", "./in.json", "results/../in.json", "link.json", "hard.json", "up/in.json", "results/step=1.json",
     "up/results/step=1.json"],
)  # fmt: skip
def test_an_output_that_is_an_input_is_refused_by_whatever_name(output, folder):
    with pytest.raises(ValueError, match=r"--json '.*' would be written over '.*', which is read"):
        check_outputs({"--json": output}, ["in.json", "results"])


def test_an_output_beside_the_inputs_is_fine(folder):
    check_outputs({"--json": "results/decision.json", "--junit": "new/gate.xml", "-o": None}, ["in.json", "results"])
    assert not (folder / "new").exists()


def test_two_outputs_in_one_place_are_refused(folder):
    with pytest.raises(ValueError, match=re.escape("--json and --junit both name './out'")):
        check_outputs({"--junit": "out", "--json": "./out"}, [])


# -------------------------------------------------------------------------------------------------------------- reading


def test_what_has_no_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="is no regular file"):
            regular(path, 100)


def test_a_file_is_judged_by_its_size_before_it_is_read(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="is larger than 1 MiB"):
        regular(tmp_path / "sparse", 1 << 20)
