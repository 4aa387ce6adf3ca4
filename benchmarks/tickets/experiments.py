"""The experiments: each function is one cell, from its settings to JSON."""

import itertools
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import secateur as sec
from secateur import lottery
from secateur.engine.masks import MaskSet, keep_top, weights_of
from secateur.methods.during.early_bird import drawn
from secateur.recovery import FineTune, FromScratch, Recovery, Rewind
from secateur.zoo.networks.resnet20 import ResNet

NETWORK = "lenet300"
EPOCHS = {"lenet300": 3, "lenet5": 6}
BATCHES = 79  # of an epoch
ROUNDS = 8
LAST = 1 - 0.5**ROUNDS  # every round halves
EARLY = {"rewind": 0, "rewind-late": BATCHES // 2}
AMOUNTS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97)  # of the curves of regularisation
RETRAIN = 2  # epochs after a pruning on these curves
State = dict[str, Tensor]
Evaluate = Callable[[nn.Module], float]


def run(network: str = NETWORK, **options: Any) -> FineTune:
    """The run that every training here is, or a part of."""
    settings = {"epochs": EPOCHS[network], "lr": 0.1, "weight_decay": 5e-4, **options}
    return FineTune(progress=False, **settings)


def loader(network: str = NETWORK) -> DataLoader:
    """The training images that ship with the package, in the order of the run's seed."""
    data: Any = sec.zoo.load_data(sec.zoo.registry.network(network).RECIPE.data, "train")
    return DataLoader(data, None, sampler=BatchSampler(RandomSampler(data), 128, False))


@cache
def test() -> tuple[Tensor, Tensor]:
    """The test images that ship with the package."""
    data: Any = sec.zoo.load_data("fashion_mnist", "test")
    return data[:]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """On the 2,000 test images that ship."""
    images, labels = test()
    return round(float((model(images).argmax(1) == labels).float().mean()), 4)


@cache
def dense(network: str, seed: int, step: int) -> tuple[nn.Module, State]:
    """A trained network, and its weights at ``step``."""
    torch.manual_seed(seed)
    model = sec.zoo.build(network)
    if step:
        run(network, stop=step, seed=seed).heal(model, data=loader(network))
    early = {n: t.clone() for n, t in model.state_dict().items()}
    run(network, start=step, seed=seed).heal(model, data=loader(network))
    return model, early


def recovery(name: str, seed: int, network: str = NETWORK) -> tuple[nn.Module, Recovery]:
    """The trained network and what follows each pruning."""
    base = run(network, seed=seed)
    step = EARLY.get(name, 0)
    model, early = dense(network, seed, step)
    kinds: dict[str, Callable[[], Recovery]] = {
        "rewind": lambda: Rewind(0, early, base),
        "rewind-late": lambda: Rewind(step, early, base),
        "rewind-rate": lambda: Rewind(0, None, base),
        "fine-tune": lambda: run(network, seed=seed, lr=0.01, schedule="constant"),
        "from-scratch": lambda: FromScratch(seed=seed + 100, base=base),
    }
    return model, kinds[name]()


def search(name: str, seed: int, folder: Path, network: str = NETWORK) -> dict[str, Any]:
    """Eight rounds of pruning, each of half of what is left."""
    model, how = recovery(name, seed, network)
    found = lottery.tickets(
        model, how, amount=LAST, steps=ROUNDS, data=loader(network), evaluate=accuracy,
        checkpoint=folder / f"{network}-{name}-{seed}",
    )  # fmt: skip
    return {
        "dense": accuracy(model),
        "removed": [round(t.masks.sparsity, 5) for t in found],
        "accuracy": [t.score for t in found],
    }


def one_shot(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The same amounts, each removed at once."""
    model, how = recovery(name, seed)
    amounts = sec.schedule.find("exponential", LAST).amounts(ROUNDS)
    found = [
        lottery.tickets(model, how, amount=a, steps=1, data=loader(), evaluate=accuracy)[0]
        for a in amounts
    ]
    return {
        "dense": accuracy(model),
        "removed": [round(t.masks.sparsity, 5) for t in found],
        "accuracy": [t.score for t in found],
    }


def again(seed: int, folder: Path, shuffled: bool) -> dict[str, Any]:
    """Masks of the search with rewinding: new weights, or places shuffled inside each layer."""
    model, how = recovery("rewind", seed)
    found = lottery.tickets(
        model, how, amount=LAST, steps=ROUNDS, data=loader(), evaluate=accuracy,
        checkpoint=folder / f"{NETWORK}-rewind-{seed}",
    )  # fmt: skip
    control = how if shuffled else FromScratch(seed=seed + 100, base=run(seed=seed))
    scores = []
    for ticket in found:
        masks = random_like(ticket.masks, seed) if shuffled else ticket.masks
        made = sec.zoo.build(NETWORK)
        control.heal(made, masks, loader())
        scores.append(accuracy(made))
    return {
        "dense": accuracy(model),
        "removed": [round(t.masks.sparsity, 5) for t in found],
        "accuracy": scores,
    }


def random_like(masks: MaskSet, seed: int) -> MaskSet:
    """As many of each layer, at random places."""
    generator = torch.Generator().manual_seed(seed + 7)
    return MaskSet(
        {
            n: keep_top(torch.rand(m.shape, generator=generator), int(m.sum()))
            for n, m in masks.items()
        }
    )


def stability(step: int, seed: int, folder: Path, amount: float) -> dict[str, Any]:
    """The barrier between two copies from ``step`` on, of the network or of its ticket there."""
    model, early = dense(NETWORK, seed, step)
    masks = None
    if amount:
        how = Rewind(step, early, run(seed=seed))
        masks = lottery.tickets(model, how, amount=amount, steps=5, data=loader())[-1].masks
    start = sec.zoo.build(NETWORK)
    start.load_state_dict(early)
    seeds = (seed + 11, seed + 12)
    found = sec.instability(
        start, run(start=step), accuracy, data=loader(), masks=masks, seeds=seeds
    )
    return {
        "height": round(found.height, 4),
        "ends": [found.points[0][1], found.points[-1][1]],
        "middle": found.points[5][1],
    }


def regularised(kind: str, seed: int, folder: Path, iterative: bool) -> dict[str, Any]:
    """A network trained with a penalty, pruned by magnitude, with and without retraining."""
    torch.manual_seed(seed)
    model = sec.zoo.build(NETWORK)
    strength = {"l1": 1e-4, "l2": 5e-4}[kind]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        weights = weights_of(model).values()
        size = [w.abs().sum() if kind == "l1" else w.square().sum() / 2 for w in weights]
        return nn.functional.cross_entropy(output, target) + strength * torch.stack(size).sum()

    run(seed=seed, loss=loss, weight_decay=0.0).heal(model, data=loader())
    decay = 5e-4 if kind == "l2" else 0.0
    retrain = run(seed=seed, epochs=RETRAIN, lr=0.01, schedule="constant", weight_decay=decay)
    bare: list[float] = []

    def after(made: nn.Module, masks: MaskSet) -> None:
        bare.append(accuracy(made))
        retrain.heal(made, masks, loader())

    if iterative:
        steps = iter(AMOUNTS)
        found = lottery.tickets(
            model, after, amount=AMOUNTS[-1], steps=len(AMOUNTS), evaluate=accuracy,
            schedule=lambda progress, initial, final: next(steps),
        )  # fmt: skip
        healed = [t.score for t in found]
    else:
        healed = []
        for amount in AMOUNTS:
            one = lottery.tickets(model, after, amount=amount, steps=1, evaluate=accuracy)
            healed.append(one[0].score)
    return {"dense": accuracy(model), "removed": list(AMOUNTS), "bare": bare, "accuracy": healed}


def digits() -> tuple[DataLoader, Evaluate]:
    """Another data set of the same shape: scikit-learn's 8 x 8 digits, enlarged."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    x = nn.functional.interpolate(x, size=(28, 28), mode="bilinear")
    x = (x - x[:1297].mean()) / x[:1297].std()
    y = torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    train = DataLoader(TensorDataset(x[:1297], y[:1297]), 64, shuffle=True, generator=generator)

    def evaluate(model: nn.Module) -> float:
        return round(float((model(x[1297:]).argmax(1) == y[1297:]).float().mean()), 4)

    return train, evaluate


def transfer(seed: int, folder: Path) -> dict[str, Any]:
    """Tickets of clothes on digits, beside those of digits and random ones."""
    model, how = recovery("rewind", seed)
    clothes = lottery.tickets(
        model, how, amount=LAST, steps=ROUNDS, data=loader(), evaluate=accuracy,
        checkpoint=folder / f"{NETWORK}-rewind-{seed}",
    )  # fmt: skip
    train, evaluate = digits()
    base = run(epochs=20, lr=0.05, seed=seed)
    first = dense(NETWORK, seed, 0)[1]
    there = sec.zoo.build(NETWORK)
    there.load_state_dict(first)
    base.heal(there, data=train)
    there.eval()
    rewind = Rewind(0, first, base)
    own = lottery.tickets(there, rewind, amount=LAST, steps=ROUNDS, data=train, evaluate=evaluate)

    def on_digits(masks: MaskSet) -> float:
        made = sec.zoo.build(NETWORK)
        rewind.heal(made, masks, train)
        return evaluate(made.eval())

    return {
        "dense": evaluate(there),
        "removed": [round(t.masks.sparsity, 5) for t in clothes],
        "clothes": [on_digits(t.masks) for t in clothes],
        "digits": [t.score for t in own],
        "random": [on_digits(random_like(t.masks, seed)) for t in clothes],
    }


def graph(network: str, seed: int, folder: Path, chosen: bool) -> dict[str, Any]:
    """Graph tickets on WordNet, or as many edges and weights left at random."""
    features, index, labels = (t for t in sec.zoo.load_data("wordnet", "train")[0])
    wanted = sec.zoo.load_data("wordnet", "test")[0][-1]
    counted = wanted >= 0
    torch.manual_seed(seed)
    model = sec.zoo.build(network)

    def evaluate(made: nn.Module, edges: Tensor) -> float:
        right = made(features, edges).argmax(-1) == wanted
        return round(float(right[counted].float().mean()), 4)

    how = FineTune(
        epochs=60, lr=0.01, optimizer="adamw", weight_decay=0.05, schedule="constant",
        progress=False, seed=seed,
    )  # fmt: skip
    amount, edges, steps = 0.9, 0.4, 3
    if chosen:
        found = lottery.graph_tickets(
            model, how, amount=amount, edges=edges, steps=steps, evaluate=evaluate,
            data=(features, index, labels), strength=(1e-5, 1e-5),
        )  # fmt: skip
        return {
            "edges": [round(1 - float(t.edges.float().mean()), 4) for t in found],
            "removed": [round(t.masks.sparsity, 4) for t in found],
            "accuracy": [t.score for t in found],
        }
    half = index.shape[1] // 2
    scores = []
    cuts = [
        (0.0, 0.0),
        *zip(
            sec.schedule.find("exponential", amount).amounts(steps),
            sec.schedule.find("exponential", edges).amounts(steps),
            strict=True,
        ),
    ]
    for of_weights, of_edges in cuts:
        generator = torch.Generator().manual_seed(seed)
        left = keep_top(torch.rand(half, generator=generator), round(half * (1 - of_edges)))
        left = torch.cat([left, left])
        masks = MaskSet(
            {
                n: keep_top(torch.rand(p.shape, generator=generator),
                            round(p.numel() * (1 - of_weights)))
                for n, p in weights_of(model).items()
            }
        )  # fmt: skip
        torch.manual_seed(seed)
        made = sec.zoo.build(network)
        how.heal(made, masks, [(features, index[:, left], labels)])
        scores.append(evaluate(made.eval(), index[:, left]))
    return {
        "dense": scores[0],
        "removed": [round(a, 4) for a, _ in cuts[1:]],
        "edges": [round(b, 4) for _, b in cuts[1:]],
        "accuracy": scores[1:],
    }


def elastic(seed: int, folder: Path) -> dict[str, Any]:
    """A ticket of two blocks a stage on three, beside the deeper network's own and a random one."""
    base = run(epochs=2, seed=seed)

    def start(depth: int) -> nn.Module:
        torch.manual_seed(seed)
        return ResNet((depth,) * 3)

    def ticket(depth: int) -> tuple[State, lottery.Ticket]:
        model = start(depth)
        first = {n: t.clone() for n, t in model.state_dict().items()}
        base.heal(model, data=loader())
        how = Rewind(0, first, base)
        return first, lottery.tickets(
            model, how, amount=0.9, steps=1, data=loader(), evaluate=accuracy
        )[0]

    stages = dict.fromkeys(("layer1", "layer2", "layer3"), lottery.evenly(2, 3))
    first, small = ticket(2)
    own = ticket(3)[1]
    stretched = MaskSet(lottery.elastic(small.masks, stages))
    scores = {}
    for name, masks in (("stretched", stretched), ("random", random_like(stretched, seed))):
        made = start(3)
        Rewind(0, lottery.elastic(first, stages), base).heal(made, masks, loader())
        scores[name] = accuracy(made.eval())
    removed = {"own": own.masks, "stretched": stretched}
    return {
        "accuracy": {"source": small.score, "own": own.score, **scores},
        "removed": {n: round(m.sparsity, 4) for n, m in removed.items()},
    }


def early_bird(seed: int, folder: Path) -> dict[str, Any]:
    """When the mask of channels settles, and what the small network then reaches."""
    torch.manual_seed(seed)
    model, epochs, half = sec.zoo.build("resnet8"), 10, BATCHES // 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    inputs = sec.zoo.example_inputs("resnet8")
    handle = sec.attach(
        model, optimizer, "early_bird", amount=0.5, every=half, example_inputs=inputs
    )
    distances: list[float] = []
    for _ in range(epochs):
        for images, labels in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if "distance" in handle.moment.state and handle.steps % half == 0:
                distances.append(round(float(handle.moment.state["distance"]), 4))
            if drawn(handle):
                break
        if drawn(handle):
            break
    found = drawn(handle)
    small = handle.finish(remove=True, example_inputs=inputs).model
    run(seed=seed).heal(small, data=loader())
    plain = sec.zoo.build("resnet8")
    run(seed=seed).heal(plain, data=loader())
    cost = sec.measure(small, inputs, against=plain, repeats=0)
    return {
        "drawn": found,
        "every": half,
        "distances": distances,
        "accuracy": accuracy(small.eval()),
        "dense": accuracy(plain.eval()),
        "macs": round(cost.macs / sec.measure(plain, inputs, repeats=0).macs, 3),
    }


def cells() -> dict[str, Callable[[Path], dict[str, Any]]]:
    """All cells by name, one seed of everything first."""
    found: dict[str, Callable[..., dict[str, Any]]] = {}
    for seed in (0, 1, 2):
        for name in ("rewind", "rewind-late", "fine-tune", "rewind-rate", "from-scratch"):
            found[f"search {name} {seed}"] = partial(search, name, seed)
        found[f"again new-weights {seed}"] = partial(again, seed, shuffled=False)
        for name in ("fine-tune", "rewind"):
            found[f"one-shot {name} {seed}"] = partial(one_shot, name, seed)
        if seed == 0:
            for kind, iterative in (("l2", False), ("l1", False), ("l2", True)):
                key = f"curve {kind} {'iterative' if iterative else 'one-shot'} {seed}"
                found[key] = partial(regularised, kind, seed, iterative=iterative)
            for network in ("gcn", "gat"):
                found[f"graph {network} tickets 0"] = partial(graph, network, 0, chosen=True)
                found[f"graph {network} random 0"] = partial(graph, network, 0, chosen=False)
            found["transfer 0"] = partial(transfer, 0)
            for step, amount in itertools.product((0, 20, 79), (0.0, 0.95)):
                found[f"stability {step} {amount} 0"] = partial(stability, step, 0, amount=amount)
            found["again shuffled 0"] = partial(again, 0, shuffled=True)
            found["early-bird 0"] = partial(early_bird, 0)
            found["elastic 0"] = partial(elastic, 0)
            found["lenet5 rewind 0"] = partial(search, "rewind", 0, network="lenet5")
    return found
