"""A run that was killed anywhere ends with the same bits as one that was not."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from resumable import Noisy, build, settings
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

import secateur as sec
from secateur.engine.order import epoch_batches
from secateur.errors import StoreError
from secateur.recovery import Distil, FineTune


class Killed(BaseException):
    """Stands for a kill inside one process: nothing after it runs but ``finally``."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loader(**options) -> DataLoader:
    return DataLoader(Noisy(), batch_size=4, shuffle=True, **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def killed_at(step: int, folder: Path, data=None, **options) -> None:
    calls = 0

    def loss(output, target):
        nonlocal calls
        calls += 1
        if calls > step:
            raise Killed
        return nn.functional.cross_entropy(output, target)

    with pytest.raises(Killed):
        settings(folder, loss=loss, **options).heal(build(), data=data or loader())


def test_sigkill_at_a_random_moment_changes_no_bit(tmp_path):
    expected = build()
    settings(None).heal(expected, data=loader())
    script = Path(__file__).with_name("resumable.py")
    command = [sys.executable, str(script), str(tmp_path / "run"), str(tmp_path / "out")]
    for _ in range(2):
        process = subprocess.Popen(command)
        file = tmp_path / "run" / "recovery.safetensors"
        stamp = file.stat().st_mtime_ns if file.exists() else None
        while process.poll() is None and (not file.exists() or file.stat().st_mtime_ns == stamp):
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -9, "it ended before it could be killed"
    subprocess.run(command, check=True)
    final = load_file(tmp_path / "out")
    assert final.pop("resumed_at") > 0
    wanted = expected.state_dict()
    assert set(final) == set(wanted)
    assert all(torch.equal(final[name], wanted[name]) for name in final)


@pytest.mark.parametrize("step", [3, 4, 10, 11, 12, 29, 43])
def test_killed_at_any_step_and_resumed_equals_uninterrupted(tmp_path, step):
    expected, resumed = build(), build()
    reference = settings(None).heal(expected, data=loader())
    killed_at(step, tmp_path)
    how = settings(tmp_path, loss=nn.functional.cross_entropy)
    report = how.heal(resumed, data=loader())
    assert same(expected, resumed)
    assert report["history"] == reference["history"]
    assert report["steps"] == 44
    # checkpoints fall on every third step and on the end of each epoch of 11
    assert report["resumed_at"] == max(s for s in (*range(3, 44, 3), 11, 22, 33) if s <= step)


def test_resume_with_early_stopping_sgd_and_a_loader_that_has_its_own_generator(tmp_path):
    scores = iter([3.0, 1.0, 2.0, 2.0] * 3)
    options = {"optimizer": "sgd", "early_stop": 3, "schedule": "cosine", "clip": 1.0}

    def own() -> DataLoader:
        return loader(generator=torch.Generator().manual_seed(99))

    expected, resumed = build(), build()
    reference = settings(None, evaluate=lambda m: next(scores), **options).heal(
        expected, data=own()
    )
    assert reference["stopped_early"]
    scores = iter([3.0, 1.0, 2.0, 2.0])
    killed_at(30, tmp_path, data=own(), evaluate=lambda m: next(scores), **options)
    scores = iter([2.0, 2.0])
    how = settings(tmp_path, evaluate=lambda m: next(scores), **options)
    report = how.heal(resumed, data=own())
    assert report["resumed_at"] == 30
    assert report["history"] == reference["history"]
    assert same(expected, resumed)


def test_resume_with_worker_processes(tmp_path):
    expected, resumed = build(), build()
    settings(None).heal(expected, data=loader(num_workers=1))
    killed_at(17, tmp_path, data=loader(num_workers=1))
    report = settings(tmp_path).heal(resumed, data=loader(num_workers=1))
    assert report["resumed_at"] == 15
    assert same(expected, resumed)


def test_a_finished_run_is_not_run_again(tmp_path):
    first, again = build(), build()
    settings(tmp_path).heal(first, data=loader())

    def loss(output, target):
        raise AssertionError("trained again")

    report = settings(tmp_path, loss=loss).heal(again, data=loader())
    assert report["resumed_at"] == report["steps"] == 44
    assert same(first, again)


def test_distillation_resumes_too(tmp_path):
    teacher = build()
    nn.init.normal_(teacher[0].weight)
    how = Distil(base=settings(tmp_path, steps=5))
    expected, again = build(), build()
    how.heal(expected, None, loader(), teacher)
    assert how.heal(again, None, loader(), teacher)["resumed_at"] == 5
    assert same(expected, again)
    with pytest.raises(StoreError, match=r"temperature: 4\.0 there, 2\.0 here"):
        Distil(temperature=2.0, base=how.base).heal(build(), None, loader(), teacher)


def test_the_callers_generators_are_given_back():
    data = loader(generator=torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), data.generator.get_state()
    settings(None, steps=2).heal(build(), data=data)
    torch.manual_seed(1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert torch.equal(before[2], data.generator.get_state())


def test_a_checkpoint_of_something_else_is_refused_and_the_model_stays(tmp_path):
    settings(tmp_path, steps=3).heal(build(), data=loader())
    other = nn.Sequential(*build()[:4], nn.Linear(16, 5))
    with pytest.raises(StoreError, match=r"another model: 4\.weight is .*\[3, 16\].*\[5, 16\]"):
        settings(tmp_path, steps=3).heal(other, data=loader())
    elsewhere = build()
    nn.init.ones_(elsewhere[0].weight)
    with pytest.raises(StoreError, match="other weights of the same shapes"):
        settings(tmp_path, steps=3).heal(elsewhere, data=loader())
    assert bool((elsewhere[0].weight == 1).all())
    with pytest.raises(StoreError, match=r"lr: 0\.01 there, 0\.5 here"):
        settings(tmp_path, steps=3, lr=0.5).heal(build(), data=loader())
    file = tmp_path / "recovery.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    model = build()
    with pytest.raises(StoreError, match="truncated"):
        settings(tmp_path, steps=3).heal(model, data=loader())
    assert same(model, build())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = build()
    with pytest.raises(StoreError, match="could not be written"):
        FineTune(steps=2, checkpoint=tmp_path / "file", progress=False).heal(model, data=loader())
    assert same(model, build())


def test_every_step_of_a_schedule_and_every_recovery_has_a_checkpoint_of_its_own(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    x, y = torch.randn(16, 6), torch.randint(0, 4, (16,))
    called = []

    def loss(output, target):
        called.append(len(output[0]))
        return nn.functional.cross_entropy(output, target)

    def run(folder):
        called.clear()
        settings = {"loss": loss, "lr": 0.1, "checkpoint": folder}
        healers = [("fine-tune", settings), ("fine-tune", settings | {"epochs": 2})]
        return sec.prune(net, x, amount=0.5, schedule="linear", steps=3, data=[(x, y)],
                         recovery=healers, measure=False, progress=False).model  # fmt: skip

    plain, kept = run(None), run(tmp_path)
    trained = len(called)
    assert len(list(tmp_path.rglob("recovery.safetensors"))) == 6
    (tmp_path / "3-1" / "recovery.safetensors").unlink()  # killed just before the last recovery
    resumed = run(tmp_path)
    assert 0 < len(called) < trained
    for other in (kept, resumed):
        assert all(map(torch.equal, plain.parameters(), other.parameters()))


class Drawn(Dataset):
    """Each item is drawn anew, by the worker that is asked for it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.rand(2) + i


@pytest.mark.parametrize("epoch", [0, 2])
def test_workers_that_live_on_draw_as_new_ones(epoch: int) -> None:
    def loader() -> DataLoader:
        return DataLoader(Drawn(), 2, shuffle=True, num_workers=1, persistent_workers=True)

    old = loader()
    for earlier in range(epoch):
        list(epoch_batches(old, 3, earlier))
    here, fresh = (torch.cat(list(epoch_batches(x, 3, epoch))) for x in (old, loader()))
    assert torch.equal(here, fresh)
