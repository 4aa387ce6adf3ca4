"""Each criterion equals its formula written out, or a number computed by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from secateur import criteria
from secateur.criteria.bn_gamma_beta import bn_gamma_beta
from secateur.criteria.cosine import cosine
from secateur.criteria.fpgm import fpgm
from secateur.criteria.lamp import lamp
from secateur.engine.statistics import STATISTICS, Stats
from secateur.errors import ConfigError, DataError
from secateur.granularity.units import lamp_scale

W = torch.tensor([[3.0, -4.0], [0.0, 0.5]])


@pytest.mark.parametrize(
    ("which", "naive"),
    [
        ("l1", lambda w: abs(w)),
        ("l2", lambda w: w * w),
        ("magnitude", lambda w: w * w),
        (("lp", {"p": 3}), lambda w: abs(w) ** 3),
        (("lp", {"p": 1}), lambda w: abs(w)),
        ("lamp", lambda w: w * w),
    ],
)
def test_magnitudes_equal_the_formula_element_by_element(which, naive):
    expected = torch.tensor([[naive(w) for w in row] for row in W.tolist()])
    assert_close(criteria.find(which)(W), expected)


def test_criteria_of_gradients_equal_the_formula_element_by_element():
    g, h = torch.tensor([[0.5, 2.0], [1.0, -3.0]]), torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    stats = Stats(grad=g, grad_sq=g**2, sample_grad_sq=2 * g**2, hessian=h)
    for which, naive in {
        "saliency": lambda w, g, h: abs(g * w),
        "taylor": lambda w, g, h: (g * w) ** 2,
        "fisher": lambda w, g, h: w * w * 2 * g * g,
        "obd": lambda w, g, h: h * w * w / 2,
        "taylor2": lambda w, g, h: abs(g * w - 2 * g * g * w * w / 2),
    }.items():
        rows = zip(W.tolist(), g.tolist(), h.tolist(), strict=True)
        expected = [[naive(*x) for x in zip(*row, strict=True)] for row in rows]
        assert_close(criteria.find(which)(W, stats), torch.tensor(expected), msg=which)
    hutchinson = criteria.find(("taylor2", {"hessian": "hutchinson"}))(W, stats)
    assert_close(hutchinson, (g * W - h * W**2 / 2).abs())
    assert_close(criteria.find(("obd", {"hessian": "fisher"}))(W, stats), W**2 * g**2)


def test_an_option_can_change_what_is_measured():
    assert criteria.find("obd").needs == {"hessian"}
    assert criteria.find(("obd", {"hessian": "fisher"})).needs == {"sample_grad_sq"}
    assert criteria.find(("taylor2", {"hessian": "hutchinson"})).needs == {"grad", "hessian"}


def test_second_order_taylor_is_the_true_change_of_a_quadratic_loss():
    torch.manual_seed(0)
    d, b, w = torch.rand(5) + 0.1, torch.randn(5), torch.randn(5)

    def loss(x):
        return (d * x * x / 2 + b * x).sum()

    stats = Stats(grad=d * w + b, hessian=d)
    changes = []
    for i in range(5):
        zeroed = w.clone()
        zeroed[i] = 0
        changes.append(abs(float(loss(zeroed) - loss(w))))
    score = criteria.find(("taylor2", {"hessian": "hutchinson"}))(w, stats)
    assert_close(score, torch.tensor(changes), rtol=1e-4, atol=1e-5)


def test_lamp_divides_by_all_that_are_at_least_as_large():
    torch.manual_seed(0)
    w = torch.randn(3, 4)
    flat = sorted((w**2).flatten().tolist())
    naive = {v: v / sum(u for u in flat if u >= v) for v in flat}
    expected = torch.tensor([[naive[v] for v in row] for row in (w**2).tolist()])
    assert_close(lamp_scale(lamp(w)), expected)
    assert lamp_scale(lamp(w)).max() == 1
    golden = lamp_scale(lamp(torch.tensor([1.0, 2.0, 3.0])))
    assert_close(golden, torch.tensor([1 / 14, 4 / 13, 1.0]))


def test_fpgm_sums_distances_and_ignores_translation():
    torch.manual_seed(0)
    f = torch.randn(6, 4)
    naive = torch.tensor([sum(float((a - b).norm()) for b in f) for a in f])
    assert_close(fpgm(f), naive)
    assert_close(fpgm(f + 5), naive, rtol=1e-4, atol=1e-4)
    assert_close(fpgm(3 * f), 3 * naive)
    copies = torch.cat([f, f[:1]])
    assert set(fpgm(torch.cat([f * 10, f[:1] * 0, f[:1] * 0])).argsort()[:2].tolist()) == {6, 7}
    assert fpgm(copies)[0] == fpgm(copies)[6]


def test_cosine_keeps_the_strongest_of_a_group_of_copies():
    f = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    naive = []
    for i, a in enumerate(f):
        stronger = [
            b for j, b in enumerate(f) if (float(b.norm()), -j) > (float(a.norm()), -i) and j != i
        ]
        cos = [abs(float(a @ b)) / (float(a.norm() * b.norm()) or 1.0) for b in stronger]
        naive.append(0.0 if a.norm() == 0 else 1 - max(cos, default=0.0))
    assert_close(cosine(f), torch.tensor(naive))
    assert cosine(f)[1] == 1 and cosine(f)[0] == 0


def test_bn_gamma_beta_is_the_mean_output_after_relu():
    torch.manual_seed(0)
    gamma, beta = torch.randn(5), torch.randn(5)
    x = torch.randn(400_000, dtype=torch.float64)
    drawn = torch.stack([(g * x + b).relu().mean() for g, b in zip(gamma, beta, strict=True)])
    score = bn_gamma_beta(gamma, Stats(shift=beta))
    assert_close(score.double(), drawn, rtol=0.02, atol=3e-3)
    assert_close(bn_gamma_beta(gamma, Stats(shift=beta), form="sum"), gamma.abs() + beta.abs())
    golden = bn_gamma_beta(torch.tensor([1.0, 0.0]), Stats(shift=torch.tensor([0.0, 2.0])))
    assert_close(golden, torch.tensor([1 / math.sqrt(2 * math.pi), 2.0]))
    with pytest.raises(ConfigError, match="relu"):
        bn_gamma_beta(gamma, Stats(shift=beta), form="gelu")


def test_random_depends_on_class_and_seed_alone():
    def draw(name, seed):
        return criteria.find(("random", {"seed": seed}))(None, Stats(name, size=50))

    assert torch.equal(draw("a", 0), draw("a", 0))
    assert not torch.equal(draw("a", 0), draw("a", 1))
    assert not torch.equal(draw("a", 0), draw("b", 0))
    assert draw("a", 0).min() >= 0 and draw("a", 0).max() < 1


def test_every_criterion_is_registered_complete():
    assert len(criteria.names()) >= 18
    for name in criteria.names():
        c = criteria.find(name)
        assert c.paper, name
        assert c.needs <= STATISTICS.keys(), name
        assert c.function.__doc__ and "Example:" in c.function.__doc__, name


def test_scores_of_half_precision_weights_are_float32_and_do_not_overflow():
    w = torch.tensor([300.0, -400.0], dtype=torch.float16)
    for name in ("l1", "l2", ("lp", {"p": 3}), "lamp"):
        score = criteria.find(name)(w)
        assert score.dtype == torch.float32 and score.isfinite().all()
    assert_close(criteria.find("l2")(w.bfloat16()), torch.tensor([90000.0, 160000.0]))


def test_a_function_is_a_criterion():
    c = criteria.find(lambda weight, stats: weight * 2)
    assert c.level == "element" and c(W)[0, 0] == 6


@pytest.mark.parametrize(
    ("which", "hint"),
    [
        ("tailor", "taylor"),
        (("lp", {"q": 2}), "option"),
        (("lp", {"p": -1}), "positive"),
        (("obd", {"hessian": "exact"}), "hutchinson"),
        (17, "give a name"),
    ],
)
def test_unknown_criteria_and_options_are_named(which, hint):
    with pytest.raises(ConfigError, match=hint):
        criteria.find(which)(W, Stats())


def test_a_statistic_that_was_not_gathered_is_named():
    with pytest.raises(DataError, match="grad_sq"):
        criteria.find("taylor")(W, Stats("fc.weight"))
    with pytest.raises(ConfigError, match="input_norm"):
        criteria.criterion(needs={"input_nrom"})(lambda weight, stats: weight)


def test_ria_shares_rows_and_columns_of_matrices_and_filters():
    torch.manual_seed(0)
    norm = torch.rand(3)
    for shape in ((4, 3), (4, 3, 2, 2)):
        w = torch.randn(shape)
        found = criteria.find(("ria", {"power": 0.7}))(w, Stats(input_norm=norm))
        for i, j, *at in torch.ones(shape).nonzero().tolist():
            size = abs(float(w[(i, j, *at)]))
            column = float(w[(slice(None), j, *at)].abs().sum())
            naive = (size / column + size / float(w[i].abs().sum())) * float(norm[j]) ** 0.7
            assert math.isclose(float(found[(i, j, *at)]), naive, rel_tol=1e-4)
