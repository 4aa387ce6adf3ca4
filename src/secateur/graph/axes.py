"""The axis algebra: what the positions along one axis of a tensor are made of.

An axis is an expression over atoms:

- ``Atom(n)``: n positions that can be removed one by one;
- ``Prod(e1, .., ek)``: row-major nesting, what a reshape of (12, 64) to 768 does;
- ``Sum(e1, .., ek)``: one after another, what ``cat`` does;
- ``Take(e, index)``: position j is position ``index[j]`` of e, what a flip or a gather does.

Atoms live in a union-find. ``unify`` makes two axes the same axis, index by index. An atom that
turns out to have inner structure is *refined*: it is defined as an expression over fresh atoms, and
every earlier occurrence sees the refinement, because expressions are only read through ``resolve``.
What cannot be expressed is *locked*, with a reason: locked positions are never removed, so locking
is always safe. Nothing here knows about tensors or networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property


class Atom:
    """``size`` interchangeable positions; identity is the object, after ``resolve``."""

    __slots__ = ("definition", "lock", "parent", "size")

    def __init__(self, size: int, lock: str | None = None) -> None:
        self.size = int(size)
        self.lock = lock
        self.parent: Atom | None = None
        self.definition: Expr | None = None


@dataclass(frozen=True, eq=False)
class Prod:
    factors: tuple[Expr, ...]

    @cached_property
    def size(self) -> int:
        return math.prod(f.size for f in self.factors)


@dataclass(frozen=True, eq=False)
class Sum:
    terms: tuple[Expr, ...]

    @cached_property
    def size(self) -> int:
        return sum(t.size for t in self.terms)


@dataclass(frozen=True, eq=False)
class Take:
    base: Expr
    index: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.index)


Expr = Atom | Prod | Sum | Take
Axes = list[Expr]


def one() -> Atom:
    """An axis of size one: it holds nothing that can be removed."""
    return Atom(1, lock="size 1")


_refinements = 0  # how often any atom was unified or defined: what was resolved since then still is


def resolve(e: Expr) -> Expr:
    """The expression with every refinement so far put in, flattened; size-one factors vanish."""
    if type(e) is Atom:
        if e.parent is None and e.definition is None:
            return e
        root = e
        while root.parent is not None:
            root = root.parent
        while e is not root:  # path compression keeps long chains of unifications cheap
            e.parent, e = root, e.parent  # type: ignore[assignment]
        if root.definition is None:
            return root
        root.definition = resolve(root.definition)
        return root.definition
    at, known = e.__dict__.get("resolved", (-1, e))
    if at != _refinements:
        known = _resolved(e)
        for seen in (e, known):
            if type(seen) is not Atom:
                seen.__dict__["resolved"] = _refinements, known
    return known


def _resolved(e: Expr) -> Expr:
    match e:
        case Prod():
            factors: list[Expr] = []
            for factor in map(resolve, e.factors):
                if isinstance(factor, Prod):
                    factors += factor.factors
                elif factor.size != 1:
                    factors.append(factor)
            if len(factors) == 1:
                return factors[0]
            return _same(e, e.factors, factors) if factors else one()
        case Sum():
            terms: list[Expr] = []
            for term in map(resolve, e.terms):
                if isinstance(term, Sum):
                    terms += term.terms
                elif term.size:
                    terms.append(term)
            if len(terms) == 1:
                return terms[0]
            return _same(e, e.terms, terms) if terms else Atom(0, lock="empty")
        case Take():
            base, index = resolve(e.base), e.index
            if isinstance(base, Take):
                inner = base.index
                base, index = base.base, tuple(inner[i] for i in index)
            if len(index) == 1:  # size-one axes vanish from nestings, so what they read must stay
                lock(base, "a single position is read")
                return one()
            return base if index == tuple(range(base.size)) else Take(base, index)
    return e


def _same(e: Prod | Sum, before: tuple[Expr, ...], after: list[Expr]) -> Expr:
    """``e`` itself if its parts are what they were, which saves copying."""
    if len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)):
        return e
    return type(e)(tuple(after))


def prod(*factors: Expr) -> Expr:
    return resolve(Prod(tuple(factors)))


def concat(*terms: Expr) -> Expr:
    return resolve(Sum(tuple(terms)))


def leaves(e: Expr) -> Iterator[Atom]:
    """The free atoms that the expression is made of, in order, with repetitions."""
    e = resolve(e)
    match e:
        case Atom():
            yield e
        case Prod():
            for f in e.factors:
                yield from leaves(f)
        case Sum():
            for t in e.terms:
                yield from leaves(t)
        case Take():
            yield from leaves(e.base)


def lock(e: Expr, why: str) -> None:
    """Never remove any position of ``e``; the first reason given is the one that is told."""
    for atom in leaves(e):
        if atom.lock is None:
            atom.lock = why


def locked(e: Expr) -> bool:
    """True if no position of ``e`` can be removed."""
    return all(a.lock is not None for a in leaves(e))


def _define(atom: Atom, e: Expr) -> None:
    global _refinements
    if atom.lock is not None:
        lock(e, atom.lock)
    atom.definition = e
    _refinements += 1


def peel(e: Expr, inner: int) -> tuple[Expr, Expr] | None:
    """View ``e`` as Prod(outer, inner) with an inner axis of the given size, refining as needed.

    Returns:
        (outer, inner), or None if the structure does not allow it.
    """
    e = resolve(e)
    if inner == 1:
        return e, one()
    if e.size == inner:
        return one(), e
    if inner == 0 or e.size % inner:
        return None
    match e:
        case Atom():
            outer_atom, inner_atom = Atom(e.size // inner), Atom(inner)
            _define(e, Prod((outer_atom, inner_atom)))
            return outer_atom, inner_atom
        case Prod():
            rest = list(e.factors)
            taken: list[Expr] = []
            while inner > 1:
                factor = rest.pop()
                if inner % factor.size == 0:
                    taken.insert(0, factor)
                    inner //= factor.size
                elif factor.size % inner == 0 and (split := peel(factor, inner)):
                    rest.append(split[0])
                    taken.insert(0, split[1])
                    break
                else:
                    return None
            return prod(*rest), prod(*taken)
        case Sum():
            if any(t.size % inner for t in e.terms):
                return None
            halves = []
            for t in e.terms:
                split = peel(t, inner)
                if split is None:
                    return None
                halves.append(split)
            for _, other in halves[1:]:
                if not unify(halves[0][1], other):
                    return None
            return concat(*(outer for outer, _ in halves)), resolve(halves[0][1])
        case Take():
            return None


def cut(e: Expr, position: int) -> tuple[Expr, Expr] | None:
    """View ``e`` as Sum(left, right) with ``position`` entries on the left, refining as needed."""
    e = resolve(e)
    if position == 0:
        return Sum(()), e
    if position == e.size:
        return e, Sum(())
    match e:
        case Atom():
            left, right = Atom(position), Atom(e.size - position)
            _define(e, Sum((left, right)))
            return left, right
        case Sum():
            seen = 0
            for k, term in enumerate(e.terms):
                if seen + term.size > position:
                    middle = cut(term, position - seen)
                    if middle is None:
                        return None
                    return (
                        concat(*e.terms[:k], middle[0]),
                        concat(middle[1], *e.terms[k + 1 :]),
                    )
                seen += term.size
            return None
        case Prod():
            outer, rest = e.factors[0], prod(*e.factors[1:])
            if position % rest.size:
                return None
            halves = cut(outer, position // rest.size)
            return halves and (prod(halves[0], rest), prod(halves[1], rest))
        case Take():
            before, after = Take(e.base, e.index[:position]), Take(e.base, e.index[position:])
            return resolve(before), resolve(after)


def unify(a: Expr, b: Expr) -> bool:
    """Make two axes of equal size the same axis; False, both locked, if it has no expression."""
    global _refinements
    a, b = resolve(a), resolve(b)
    if a is b or a.size == 1 == b.size:
        return True
    if a.size != b.size:
        return _give_up(a, b, f"axes of different sizes {a.size} and {b.size} were matched")
    if isinstance(b, Atom) and not isinstance(a, Atom):
        a, b = b, a
    match a, b:
        case Atom(), Atom():
            a.parent = b
            _refinements += 1
            b.lock = b.lock or a.lock
            return True
        case Atom(), _:
            if any(leaf is a for leaf in leaves(b)):
                return _give_up(b, b, "an axis would have to contain itself")
            _define(a, b)
            return True
        case Prod(), Prod():
            return _unify_products(a, b)
        case (Take(), Take()) if a.index == b.index:
            return unify(a.base, b.base)
        case (Take(), _) | (_, Take()):
            return _give_up(a, b, "a reordered axis meets one with another structure")
        case (Sum(), _) | (_, Sum()):
            return _unify_sums(a, b)
    return _give_up(a, b, "two axes of different structure meet")


def _unify_sums(a: Expr, b: Expr) -> bool:
    """Unify the terms of two sums one after the other, cut where the other's end."""
    here, there, agreed = [a], [b], True  # what is to come, the next last
    while here and there:
        # Cutting one side may refine atoms of the other, so each is seen as what it has become.
        x, y = _next(here), _next(there)
        if x.size < y.size:
            here, there, x, y = there, here, y, x
        if x.size == y.size:
            agreed = unify(x, y) and agreed
        elif halves := cut(x, y.size):
            here += halves[::-1]
            there.append(y)
        else:
            why = "an axis is cut where its inner structure has no boundary"
            return _give_up(concat(x, *here[::-1]), concat(y, *there[::-1]), why)
    return agreed


def _next(terms: list[Expr]) -> Expr:
    """Take the first term, which is no sum, off a list in reverse."""
    while isinstance(first := resolve(terms.pop()), Sum):
        terms += first.terms[::-1]
    return first


def _unify_products(a: Prod, b: Prod) -> bool:
    x, y = a.factors[-1], b.factors[-1]
    small = min(x.size, y.size)
    if max(x.size, y.size) % small:
        small = math.gcd(x.size, y.size)
    if small == 1:
        return _give_up(a, b, "two nestings of an axis have no common inner size")
    split_a = peel(a, small)
    split_b = peel(b, small) if split_a else None
    if split_a is None or split_b is None:
        return _give_up(a, b, "two nestings of an axis do not align")
    inner = unify(split_a[1], split_b[1])
    return unify(split_a[0], split_b[0]) and inner


def _give_up(a: Expr, b: Expr, why: str) -> bool:
    lock(a, why)
    lock(b, why)
    return False


def reshape(axes: Sequence[Expr], sizes: Sequence[int], why: str = "reshape") -> Axes:
    """The axes of a contiguous tensor with ``axes`` after a reshape to ``sizes``.

    Old and new axes are grouped into the shortest runs with equal products; within a run the new
    axes are peeled off from the inside.
    """
    if math.prod(e.size for e in axes) == 0:
        for e in axes:
            lock(e, why)
        return [Atom(n, lock="empty") for n in sizes]
    result: Axes = []
    old, new = list(axes), list(sizes)
    i = j = 0
    while i < len(old) or j < len(new):
        run: list[Expr] = []
        out: list[int] = []
        left = right = 1
        while (not run and not out) or left != right:
            if (left <= right and i < len(old)) or j >= len(new):
                run.append(old[i])
                left *= old[i].size
                i += 1
            else:
                out.append(new[j])
                right *= new[j]
                j += 1
        # Size-one axes belong to no run: they come and go freely.
        result += _split(prod(*run), out, why)
    return result


def _split(e: Expr, sizes: Sequence[int], why: str) -> Axes:
    result: Axes = []
    rest: Expr | None = e
    for position in range(len(sizes) - 1, -1, -1):
        size = sizes[position]
        if size == 1:
            result.append(one())
            continue
        if rest is None:
            result.append(Atom(size, lock=why))
            continue
        halves = peel(rest, size)
        if halves is None:
            lock(rest, f"{why} across the boundaries of its parts")
            rest = None
            result.append(Atom(size, lock=why))
            continue
        rest, inner = halves
        result.append(inner)
    return result[::-1]
