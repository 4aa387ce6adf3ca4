"""Distillation against its formula written out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ConfigError, DataError
from secateur.recovery import Distil, FineTune
from secateur.recovery.distil import distillation_loss, similarity_loss


def net(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 4))


def data(count=4):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(8, 5, generator=generator),
            torch.randint(4, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def once(**options) -> Distil:
    base = FineTune(steps=1, lr=1.0, momentum=0.0, schedule="constant", progress=False)
    return Distil(base=base, **options)


def test_the_loss_is_hintons_formula_written_out():
    student, teacher, t = torch.randn(3, 4), torch.randn(3, 4), 2.5
    total = 0.0
    for s, z in zip(student.double(), teacher.double(), strict=True):
        p = [float(v) for v in (z / t).exp() / (z / t).exp().sum()]
        q = [float(v) for v in (s / t).exp() / (s / t).exp().sum()]
        total += sum(a * float(torch.tensor(a / b, dtype=torch.float64).log())
                     for a, b in zip(p, q, strict=True))  # fmt: skip
    assert distillation_loss(student, teacher, t).item() == pytest.approx(t * t * total / 3)


def test_the_gradient_for_high_temperature_is_the_difference_of_centred_logits():
    # Hinton et al., eq. 4: with T^2, dL/dz = (z_s - z_t) / N for zero-mean logits
    student = torch.tensor([[1.0, -2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5, -1.0]], dtype=torch.float64)
    distillation_loss(student, teacher, 1000.0).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3, rtol=1e-2, atol=1e-3)


def test_classes_are_on_axis_one_of_images_and_masked_tokens_do_not_count():
    s, t = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    pixels = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (s, t)]
    assert distillation_loss(s, t, 2.0) == pytest.approx(distillation_loss(*pixels, 2.0))
    s, t = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    kept = mask.bool()
    assert distillation_loss(s, t, 2.0, mask) == pytest.approx(
        distillation_loss(s[kept], t[kept], 2.0)
    )


def test_similarity_of_features_is_the_formula_for_any_width():
    s, t = torch.randn(3, 6), torch.randn(3, 2, 5)
    total = 0.0
    for i in range(3):
        rows = []
        for f in (s.flatten(1), t.flatten(1)):
            row = [float(f[i] @ f[j]) for j in range(3)]
            norm = sum(v * v for v in row) ** 0.5
            rows.append([v / norm for v in row])
        total += sum((a - b) ** 2 for a, b in zip(*rows, strict=True))
    assert similarity_loss(s, t).item() == pytest.approx(total / 9, rel=1e-5)


def test_one_step_follows_the_mixed_loss():
    student, teacher = net(6, 0), net(12, 1)
    student[2].p = 0.0
    plain = copy.deepcopy(student)
    (x, y), *_ = data(1)
    report = once(temperature=3.0, alpha=0.7).heal(student, None, data(1), teacher)
    wanted = teacher.eval()(x).detach()
    soft = F.kl_div(
        F.log_softmax(plain(x) / 3, -1), F.softmax(wanted / 3, -1), reduction="batchmean"
    )
    loss = 0.7 * 9 * soft + 0.3 * F.cross_entropy(plain(x), y)
    loss.backward()
    assert report["history"][0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(student[0].weight, plain[0].weight - plain[0].weight.grad)


def test_features_add_their_term():
    student, teacher = net(6, 0), net(12, 1)
    student[2].p = 0.0
    plain = copy.deepcopy(student)
    x = data(1)[0][0]
    how = once(alpha=1.0, features=["1"], feature_weight=10.0)
    report = how.heal(student, None, data(1), teacher)
    teacher.eval()
    expected = distillation_loss(plain(x), teacher(x), 4.0) + 10 * similarity_loss(
        plain[:2](x), teacher[:2](x)
    )
    assert report["history"][0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert not any(m._forward_hooks for n in (student, teacher) for m in n.modules())


def test_the_student_comes_nearer_and_the_teacher_stays_as_it_was():
    student, teacher = net(6, 0), net(12, 1)
    teacher[3].weight.data *= 4
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    inputs = [x for x, _ in data(20)]  # no targets are needed

    def distance() -> float:
        with torch.no_grad():
            pairs = [(student.eval()(x), teacher.eval()(x)) for x in inputs]
        student.train()
        teacher.train()
        return sum(float(distillation_loss(s, t, 1.0)) for s, t in pairs)

    first = distance()
    Distil(2.0, alpha=1.0, base=FineTune(epochs=10, lr=0.1, progress=False)).heal(
        student, None, inputs, teacher
    )
    assert distance() < 0.5 * first
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(m.training for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())


def test_what_cannot_be_distilled_is_said():
    student, teacher = net(6, 0), net(12, 1)
    with pytest.raises(DataError, match="pass teacher="):
        once().heal(student, None, data())
    with pytest.raises(DataError, match="pass teacher="):
        once().heal(student, None, data(), student)
    with pytest.raises(DataError, match="no loss follows"):
        once(alpha=0.5).heal(student, None, [x for x, _ in data()], teacher)
    with pytest.raises(ConfigError, match=r"alpha=1\.5"):
        once(alpha=1.5).heal(student, None, data(), teacher)
    with pytest.raises(ConfigError, match="student has no module 'layer9'"):
        once(features=["layer9"]).heal(student, None, data(), teacher)
    with pytest.raises(ConfigError, match=r"\[8, 4\].*\[8, 5\]"):
        once().heal(student, None, data(), nn.Linear(5, 5))
