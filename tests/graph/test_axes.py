"""The axis algebra against brute force.

Two oracles, neither of which knows the algebra:

- *moves on masks*: after any sequence of moves, any choice of what goes from the free atoms, read
  back position by position, must satisfy every move that was made. If the algebra claimed two tied
  positions to be independent, some choice breaks the move that ties them.
- *ties on labels*: where no axis is nested, every position carries a label, the same moves run on
  the label arrays, and labels that are matched are tied. The algebra's units must be these ties.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from secateur.graph.axes import (
    Atom,
    Expr,
    Prod,
    Sum,
    Take,
    concat,
    cut,
    leaves,
    lock,
    locked,
    one,
    peel,
    prod,
    reshape,
    resolve,
    unify,
)

Kept = dict[int, list[bool]]
SIZES = [1, 2, 2, 3, 4, 4, 6, 6, 8, 12]


def free_atoms(exprs: list[Expr]) -> list[Atom]:
    found = {id(a): a for e in exprs for a in leaves(e) if a.lock is None and a.size > 1}
    return list(found.values())


def mask(e: Expr, kept: Kept) -> list[bool]:
    """Which positions of an axis stay, one by one; atoms not in ``kept`` stay whole."""
    e = resolve(e)
    match e:
        case Atom():
            return kept.get(id(e), [True] * e.size)
        case Prod():
            return [all(units) for units in itertools.product(*(mask(f, kept) for f in e.factors))]
        case Sum():
            return [unit for t in e.terms for unit in mask(t, kept)]
        case Take():
            base = mask(e.base, kept)
            return [base[i] for i in e.index]


def block(axes: list[Expr], kept: Kept) -> np.ndarray:
    """Which elements of a tensor stay: those that no removed position of any axis holds."""
    shape = [e.size for e in axes]
    stays = np.ones(shape, dtype=bool)
    for i, e in enumerate(axes):
        view = [1] * len(axes)
        view[i] = shape[i]
        stays &= np.array(mask(e, kept), dtype=bool).reshape(view)
    return stays


def choices(atoms: list[Atom], seed: int) -> list[Kept]:
    """What may go: every single unit of every atom on its own, and a few random selections."""
    rng = random.Random(seed)
    result: list[Kept] = [
        {id(a): [i != gone for i in range(a.size)]} for a in atoms for gone in range(a.size)
    ]
    for _ in range(6):
        result.append({id(a): [rng.random() < 0.6 for _ in range(a.size)] for a in atoms})
    return result


class Program:
    """Random moves on a pool of axes; each leaves a claim that must hold for any choice."""

    def __init__(self) -> None:
        self.pool: list[Expr] = []
        self.roots: list[Expr] = []
        self.claims: list[tuple[str, Callable[[Kept], bool]]] = []

    def new(self, size: int, why: str | None = None) -> Expr:
        self.roots.append(Atom(size, lock=why))
        self.pool.append(self.roots[-1])
        return self.roots[-1]

    def pick(self, k: int, size: int | None = None) -> Expr:
        fitting = [e for e in self.pool if size is None or e.size == size]
        return fitting[k % len(fitting)]

    def claim(self, name: str, holds: Callable[[Kept], bool]) -> None:
        self.claims.append((name, holds))

    def concat(self, a: int, b: int, c: int) -> None:
        parts = [self.pick(k) for k in (a, b, c)[: 2 + c % 2]]
        if sum(p.size for p in parts) > 40:
            return
        whole = concat(*parts)
        self.pool.append(whole)
        self.claim("concat", lambda m: mask(whole, m) == [u for p in parts for u in mask(p, m)])

    def nest(self, a: int, b: int, c: int) -> None:
        x, y = self.pick(a), self.pick(b)
        if x.size * y.size > 48:
            return
        whole = prod(x, y)
        self.pool.append(whole)
        self.claim("nest", lambda m: (block([x, y], m).ravel() == mask(whole, m)).all())

    def cut(self, a: int, b: int, c: int) -> None:
        e = self.pick(a)
        at = b % (e.size + 1)
        halves = cut(e, at)
        if halves is None:
            lock(e, "cut")
            return
        left, right = halves
        assert (left.size, right.size) == (at, e.size - at)
        self.pool += [h for h in halves if h.size]
        self.claim("cut", lambda m: mask(left, m) + mask(right, m) == mask(e, m))

    def peel(self, a: int, b: int, c: int) -> None:
        e = self.pick(a)
        inner_size = [d for d in range(1, e.size + 1) if e.size % d == 0]
        inner_size = inner_size[b % len(inner_size)]
        halves = peel(e, inner_size)
        if halves is None:
            lock(e, "peel")
            return
        outer, inner = halves
        assert (outer.size, inner.size) == (e.size // inner_size, inner_size)
        self.pool += [outer, inner]
        self.claim("peel", lambda m: (block([outer, inner], m).ravel() == mask(e, m)).all())

    def unify(self, a: int, b: int, c: int) -> None:
        x = self.pick(a)
        y = self.pick(b, x.size)
        done = unify(x, y)
        assert done or (locked(x) and locked(y))
        self.claim("unify", lambda m: mask(x, m) == mask(y, m))

    def take(self, a: int, b: int, c: int) -> None:
        e = self.pick(a)
        rng = random.Random(b)
        index = rng.sample(range(e.size), rng.randint(1, e.size))
        if b % 3 == 0:
            index = list(range(e.size))[::-1]
        taken = resolve(Take(e, tuple(index)))
        self.pool.append(taken)
        self.claim("take", lambda m: mask(taken, m) == [mask(e, m)[i] for i in index])

    def reshape(self, a: int, b: int, c: int) -> None:
        before = [self.pick(k) for k in (a, b, c)[: 1 + c % 3]]
        total = int(np.prod([e.size for e in before]))
        if total > 200:
            return
        rng = random.Random(a * 31 + b * 7 + c)
        sizes: list[int] = []
        rest = total
        while rest > 1:
            d = rng.choice([d for d in range(1, rest + 1) if rest % d == 0])
            sizes.append(d)
            rest //= d
        after = reshape(before, sizes)
        assert [e.size for e in after] == sizes
        self.pool += after
        self.claim("reshape", lambda m: (block(before, m).ravel() == block(after, m).ravel()).all())

    def lock(self, a: int, b: int, c: int) -> None:
        e = self.pick(a)
        lock(e, "because")
        self.claim("lock", lambda m: all(mask(e, m)))


MOVES = ["concat", "nest", "cut", "peel", "unify", "unify", "unify", "take", "reshape", "reshape"]
LINEAR = ["concat", "cut", "unify", "unify"]
number = st.integers(0, 999)


def programs(moves: list[str], longest: int) -> st.SearchStrategy:
    steps = st.tuples(st.sampled_from(moves), number, number, number)
    return st.tuples(
        st.lists(st.sampled_from(SIZES), min_size=2, max_size=6),
        st.lists(steps, min_size=1, max_size=longest),
    )


def run(sizes: list[int], steps: list[tuple[str, int, int, int]]) -> Program:
    program = Program()
    for size in sizes:
        program.new(size)
    for name, a, b, c in steps:
        getattr(program, name)(a, b, c)
    return program


@settings(max_examples=400, deadline=None)
@given(programs([*MOVES, "lock"], 14))
def test_whatever_goes_from_free_atoms_every_move_still_holds(program):
    done = run(*program)
    atoms = free_atoms(done.pool + done.roots)
    event(f"free atoms: {min(len(atoms), 4)}")
    for kept in choices(atoms, seed=len(done.claims)):
        for k, (name, holds) in enumerate(done.claims):
            assert holds(kept), f"move {k} ({name}) of {program} is broken by {kept}"


@settings(max_examples=400, deadline=None)
@given(programs(LINEAR, 14))
def test_without_nesting_units_are_exactly_the_ties_of_the_labels(program):
    """Union-find over labels, matched index by index; each unit is one tie and none is lost."""
    sizes, steps = program
    done = Program()
    parent: list[int] = []

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    labels: list[list[int]] = []
    for size in sizes:
        done.new(size)
        labels.append(list(range(len(parent), len(parent) + size)))
        parent += labels[-1]
    for name, a, b, _ in steps:
        x = a % len(labels)
        if name == "concat":
            y = b % len(labels)
            if len(labels[x]) + len(labels[y]) <= 40:
                done.pool.append(concat(done.pool[x], done.pool[y]))
                labels.append(labels[x] + labels[y])
        elif name == "cut":
            at = b % (len(labels[x]) + 1)
            halves = cut(done.pool[x], at)
            assert halves is not None  # without nesting every cut can be expressed
            for half, part in zip(halves, (labels[x][:at], labels[x][at:]), strict=True):
                if part:
                    done.pool.append(half)
                    labels.append(part)
        else:
            alike = [i for i, row in enumerate(labels) if len(row) == len(labels[x])]
            y = alike[b % len(alike)]
            if not unify(done.pool[x], done.pool[y]):
                return  # locking is always safe; the other oracle covers it
            for p, q in zip(labels[x], labels[y], strict=True):
                parent[root(p)] = root(q)

    tied: dict[int, set[int]] = {}
    for label in range(len(parent)):
        tied.setdefault(root(label), set()).add(label)
    origin = [label for row in labels[: len(sizes)] for label in row]
    for atom in free_atoms(done.roots):
        for gone in range(atom.size):
            kept = {id(atom): [i != gone for i in range(atom.size)]}
            stays = [m for e in done.roots for m in mask(e, kept)]
            removed = {label for label, stay in zip(origin, stays, strict=True) if not stay}
            assert removed == tied[root(min(removed))]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=4), st.randoms())
def test_a_reshape_there_and_back_loses_nothing(sizes, rng):
    """Flatten and split again as before: the same atoms come back, in the same places, unlocked."""
    axes: list[Expr] = [Atom(n) for n in sizes]
    (flat,) = reshape(axes, [int(np.prod(sizes))])
    back = reshape([flat], sizes)
    assert [resolve(e) for e in back] == axes
    ones = list(sizes)
    ones.insert(rng.randint(0, len(sizes)), 1)
    assert [e for e in reshape(axes, ones) if e.size > 1] == axes
    assert all(a.lock is None for a in axes)


@pytest.mark.parametrize("size, inner", [(12, 4), (12, 3), (8, 2), (6, 6), (7, 1)])
def test_peeling_an_atom_gives_free_factors_and_refines_earlier_occurrences(size, inner):
    atom = Atom(size)
    doubled = concat(atom, atom)
    outer, part = peel(atom, inner)
    assert (outer.size, part.size) == (size // inner, inner)
    free = [e for e in (outer, part) if e.size > 1]
    assert all(e.lock is None for e in free)
    for e in free:
        kept = {id(resolve(e)): [i != 0 for i in range(e.size)]}
        assert mask(doubled, kept) == mask(atom, kept) * 2
        assert mask(atom, kept).count(False) == size // e.size


def test_unify_aligns_nestings_by_their_greatest_common_divisor():
    """(4, 6) and (8, 3) of 24 are both (4, 2, 3): nothing need be locked."""
    a, b, c, d = Atom(4), Atom(6), Atom(8), Atom(3)
    assert unify(prod(a, b), prod(c, d))
    factors = resolve(prod(a, b)).factors
    assert [f.size for f in factors] == [4, 2, 3]
    assert all(x is y for x, y in zip(factors, resolve(prod(c, d)).factors, strict=True))
    assert not any(f.lock for f in factors)


def test_unify_cuts_an_axis_at_the_boundaries_of_a_concatenation():
    whole, left, right = Atom(10), Atom(4), Atom(6)
    assert unify(whole, concat(left, right))
    assert [t.size for t in resolve(whole).terms] == [4, 6]
    third = concat(Atom(7), Atom(3))
    assert unify(third, whole)
    assert [t.size for t in resolve(whole).terms] == [4, 3, 3]
    assert not any(a.lock for a in leaves(whole))


def test_peeling_a_concatenation_ties_the_inner_parts():
    left, right = Atom(4), Atom(8)
    outer, inner = peel(concat(left, right), 4)
    assert outer.size == 3 and inner.size == 4
    kept = {id(resolve(inner)): [True, False, True, True]}
    assert mask(left, kept) == [True, False, True, True]
    assert mask(right, kept) == [True, False, True, True] * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: (Atom(4), Atom(6)),
        lambda: (prod(Atom(2), Atom(3)), concat(Atom(2), Atom(4))),
        lambda: (prod(Atom(2), Atom(9)), prod(Atom(9), Atom(2))),
        lambda: (resolve(Take(Atom(4), (3, 2, 1, 0))), Sum((Atom(1), Atom(3)))),
    ],
    ids=["sizes", "cut inside a nesting", "no common nesting", "reordered"],
)
def test_what_has_no_expression_is_locked_on_both_sides_with_a_reason(make):
    a, b = make()
    assert not unify(a, b)
    for atom in (*leaves(a), *leaves(b)):
        assert atom.lock


def test_an_axis_cannot_contain_itself():
    """x = (x, rest) of equal size is impossible; x with a nesting of its own parts locks it."""
    x = Atom(6)
    outer, inner = peel(x, 3)
    assert not unify(x, prod(inner, outer)) or not free_atoms([x])


def test_the_first_reason_for_a_lock_is_the_one_that_is_told():
    atom = Atom(4)
    lock(atom, "model input")
    lock(atom, "softmax")
    assert atom.lock == "model input"
    assert unify(Atom(4), atom) and atom.lock == "model input"
    outer, inner = peel(atom, 2)
    assert resolve(outer).lock == resolve(inner).lock == "model input"


def test_reversing_twice_is_the_axis_itself():
    atom = Atom(5)
    back = tuple(range(4, -1, -1))
    assert resolve(Take(Take(atom, back), back)) is atom


def test_size_one_axes_vanish_from_nestings_and_hold_nothing():
    atom = Atom(5)
    assert prod(one(), atom, one()) is atom
    assert locked(one()) and unify(one(), one())


def test_long_chains_of_unifications_stay_cheap():
    """Ten thousand axes made one by one resolve without deep recursion."""
    atoms = [Atom(3) for _ in range(10_000)]
    for a, b in itertools.pairwise(atoms):
        assert unify(a, b)
    assert all(resolve(a) is resolve(atoms[0]) for a in atoms)
