"""Saving is all or nothing: full disks, failing renames and kills leave what was there."""

import errno
import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from stored_models import build, inputs, output

from secateur.errors import StoreError
from secateur.files import write_text, write_together
from secateur.plan import store
from secateur.plan.store import load, save


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


@pytest.fixture
def two(pruned):
    """A pruned model, its plan, and the same model with other weights."""
    _, plan, small = pruned("plain")
    return plan, small, plan.apply(build("plain", 9))


def fail_at(monkeypatch, name, nth, error):
    """The nth call of Path.<name> or os.<name> raises."""
    owner = Path if name in ("replace", "write_bytes", "mkdir") else os
    real = getattr(owner, name)
    calls = 0

    def failing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(error, os.strerror(error))
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize(
    ("call", "nth"),
    [(call, n) for call in ("fsync", "replace", "open") for n in (1, 2, 3)]
    + [("write_bytes", 1), ("write_bytes", 2)],
)
def test_any_failing_write_leaves_the_old_folder_as_it_was(call, nth, two, tmp_path, monkeypatch):
    plan, small, other = two
    path = save(tmp_path / "m", small, plan)
    before = contents(path)
    with monkeypatch.context() as patch:
        fail_at(patch, call, nth, errno.ENOSPC)
        with pytest.raises(StoreError, match=r"could not be written: .*No space left.*untouched"):
            save(path, other, plan)
    assert contents(path) == before
    save(path, other, plan)
    assert contents(path) != before


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_failed_first_save_leaves_nothing(call, two, tmp_path, monkeypatch):
    plan, small, _ = two
    with monkeypatch.context() as patch:
        fail_at(patch, call, 1, errno.EDQUOT)
        with pytest.raises(StoreError, match="could not be written"):
            save(tmp_path / "deep" / "down", small, plan)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_written_leave_the_old_folder(two, tmp_path, monkeypatch):
    plan, small, other = two
    path = save(tmp_path / "m", small, plan)
    before = contents(path)

    def full(tensors, filename, metadata=None):
        Path(filename).write_bytes(b"half a file")
        raise store.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", full)
        with pytest.raises(StoreError, match=r"the weights could not be written.*No space left"):
            save(path, other, plan)
    assert contents(path) == before


def in_a_child(work):
    """Run ``work`` in a fork of this process; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = work() or 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("share", [0.005, 0.3, 0.9])
def test_files_that_the_system_cuts_short_leave_the_old_folder(share, two, tmp_path):
    """A real limit of the kernel on the size of files."""
    plan, small, other = two
    path = save(tmp_path / "m", small, plan)
    before = contents(path)
    limit = int(max(len(data) for data in before.values()) * share)

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(path, other, plan)
        except StoreError as error:
            return 7 if "File too large" in str(error) else 8

    _, status = os.waitpid(in_a_child(work), 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert contents(path) == before


def test_a_full_file_system_leaves_the_old_folder(tmp_path, two):
    plan, small, other = two
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        path = save(place / "m", small, plan)
        before = contents(path)
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        (place / "ballast").write_bytes(bytes(max(0, free - 8192)))
        with pytest.raises(StoreError, match="No space left"):
            save(path, other, plan)
        assert contents(path) == before
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_kill_at_any_moment_leaves_a_whole_model_or_a_clear_error(two, tmp_path):
    """What loads after SIGKILL is one of the two models that were being saved in turn."""
    plan, *models = two
    path = save(tmp_path / "m", models[0], plan)
    expected = [output(m, inputs("plain")) for m in models]

    def work():
        while True:
            for m in models:
                save(path, m, plan)

    wholes = 0
    for k in range(20):
        pid = in_a_child(work)
        time.sleep(0.05 + 0.007 * k)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        try:
            found = output(load(build("plain", 2), path), inputs("plain"))
        except StoreError as error:  # killed between two renamings
            assert "of another model" in str(error)
            save(path, models[0], plan)
            continue
        wholes += 1
        assert any(torch.equal(found, e) for e in expected)
    assert wholes >= 10


def test_saving_again_replaces_what_an_earlier_save_wrote_and_nothing_else(two, tmp_path):
    plan, small, other = two
    path = save(tmp_path / "m", small, plan)
    (path / "notes.txt").write_text("mine")
    save(path, other, plan)
    assert (path / "notes.txt").read_text() == "mine"
    assert torch.equal(output(load(build("plain"), path), inputs("plain")),
                       output(other, inputs("plain")))  # fmt: skip


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "plan.json"])
def test_files_of_somebody_else_are_not_overwritten(name, two, tmp_path):
    plan, small, _ = two
    (tmp_path / name).write_text("mine")
    with pytest.raises(StoreError, match="was not written by an earlier save and would be lost"):
        save(tmp_path, small, plan)
    assert contents(tmp_path) == {name: b"mine"}
    save(tmp_path, small, plan, overwrite=True)
    load(build("plain"), tmp_path)


def test_a_folder_with_other_files_is_joined(two, tmp_path):
    plan, small, _ = two
    (tmp_path / "config.yaml").write_text("mine")
    save(tmp_path, small, plan)
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_files_that_no_longer_belong_are_removed(pruned, tmp_path):
    _, plan, small = pruned("branches")
    _, other_plan, other = pruned("plain")
    path = save(tmp_path / "m", small, plan)
    assert (path / "buffers.safetensors").exists()
    save(path, other, other_plan)
    assert not (path / "buffers.safetensors").exists()


def test_a_hostile_list_of_written_files_removes_nothing(two, tmp_path):
    plan, small, other = two
    path = save(tmp_path / "m", small, plan)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (path / "notes.txt").write_text("mine")
    from secateur.plan.encode import digest

    data = json.loads((path / "plan.json").read_text())
    data["written"] += ["../precious", "notes.txt", str(precious), 5]
    data.pop("sha256")
    data["sha256"] = digest(data)
    (path / "plan.json").write_text(json.dumps(data))
    save(path, other, plan)
    assert precious.read_text() == "mine" and (path / "notes.txt").read_text() == "mine"


def test_links_are_replaced_and_not_followed(two, tmp_path):
    plan, small, other = two
    path = save(tmp_path / "m", small, plan)
    target = tmp_path / "target"
    target.write_text("mine")
    (path / "README.md").unlink()
    (path / "README.md").symlink_to(target)
    save(path, other, plan)
    assert target.read_text() == "mine"
    assert not (path / "README.md").is_symlink()


def test_a_file_in_the_place_of_the_folder_is_refused(two, tmp_path):
    plan, small, _ = two
    (tmp_path / "m").write_text("mine")
    with pytest.raises(StoreError, match="is a file: choose a folder"):
        save(tmp_path / "m", small, plan)


def test_a_folder_that_may_not_be_written_is_refused(two, tmp_path):
    plan, small, _ = two
    with pytest.raises(StoreError, match="could not be written"):
        save("/proc/nowhere", small, plan)


def test_a_plan_alone_is_written_whole_or_not_at_all(two, tmp_path, monkeypatch):
    plan, _, _ = two
    plan.save(tmp_path / "plan.json")
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        fail_at(patch, "fsync", 1, errno.ENOSPC)
        with pytest.raises(StoreError, match="No space left"):
            plan.save(tmp_path / "plan.json")
    assert contents(tmp_path) == before


def test_files_have_the_rights_that_new_files_have(two, tmp_path):
    plan, small, _ = two
    (tmp_path / "ordinary").write_text("")
    path = save(tmp_path / "m", small, plan)
    ordinary = (tmp_path / "ordinary").stat().st_mode
    assert all(p.stat().st_mode == ordinary for p in path.iterdir())


def test_a_renaming_that_fails_half_way_is_taken_back(tmp_path, monkeypatch):
    write_together(tmp_path, {"a": write_text("1"), "b": write_text("1")})
    with monkeypatch.context() as patch:
        fail_at(patch, "replace", 2, errno.EIO)
        with pytest.raises(StoreError):
            write_together(
                tmp_path, {"a": write_text("2"), "b": write_text("2"), "c": write_text("")}
            )
    assert contents(tmp_path) == {"a": b"1", "b": b"1"}


def test_a_folder_in_the_place_of_a_file_is_refused_and_stays(two, tmp_path):
    plan, small, _ = two
    (tmp_path / "plan.json" / "precious").mkdir(parents=True)
    with pytest.raises(StoreError, match="it is a folder"):
        plan.save(tmp_path / "plan.json")
    with pytest.raises(StoreError, match="it is a folder"):
        save(tmp_path, small, plan, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json" / "precious").is_dir()
