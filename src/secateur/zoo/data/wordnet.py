"""A graph of WordNet 3.0 nouns: which of seven kinds of thing does a word's node name?

A node is a sense of a noun, an edge says "is a", "part of", "member of" or "made of", and a node's
features are the words of its definition. The classes are WordNet's own files of nouns.
"""

import random
import re
from collections import Counter, deque
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from secateur.zoo.places import embedded

LICENCE = "WordNet 3.0 licence, Princeton University"
CLASSES = {5: "animal", 6: "artifact", 7: "attribute", 9: "cognition", 13: "food", 18: "person"}
CLASSES[20] = "plant"
RELATIONS = {"@", "@i", "#m", "#p", "#s"}  # hypernyms and holonyms
PER_CLASS, LABELLED, WORDS = 500, 60, 1000
ELSEWHERE = -100  # cross-entropy's ignore_index


def load(split: str, full: bool) -> TensorDataset:
    """Read the graph as one item: features, edges and the split's labels.

    Features are `(nodes, words)`, rows summing to one; edges `(2, edges)`, each in both directions.
    Labels `(nodes,)` are -100 outside of the split. There is no larger set than this.
    """
    arrays = embedded("wordnet")
    count = len(arrays["labels"])
    bits = np.unpackbits(arrays["features"], axis=1, count=WORDS)
    features = torch.from_numpy(bits).float()
    features /= features.sum(1, keepdim=True).clamp(min=1)
    edges = torch.from_numpy(arrays["edges"].astype(np.int64))
    labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    train = torch.zeros(count, dtype=torch.bool)
    train[torch.from_numpy(arrays["labelled"].astype(np.int64))] = True
    labels[train if split == "test" else ~train] = ELSEWHERE
    return TensorDataset(features[None], torch.cat([edges, edges.flip(0)], 1)[None], labels[None])


def prepare(source: Path) -> dict[str, np.ndarray]:
    """Grow one connected piece from edges that join two classes, 500 nodes a class at most.

    Args:
        source: the folder of `data.noun` (Debian's wordnet-base: /usr/share/wordnet).
    """
    kinds, glosses, neighbours = _nouns(source / "data.noun")
    chance = random.Random(0)
    mixed = [(a, b) for a in neighbours for b in neighbours[a] if kinds[a] != kinds[b]]
    queue = deque(node for edge in chance.sample(sorted(mixed), 40) for node in edge)
    sizes: Counter[int] = Counter()
    taken: dict[int, int] = {}
    while queue:
        node = queue.popleft()
        if node in taken or sizes[kinds[node]] >= PER_CLASS:
            continue
        taken[node] = len(taken)
        sizes[kinds[node]] += 1
        queue.extend(chance.sample(sorted(neighbours[node]), len(neighbours[node])))
    found = Counter(w for node in taken for w in glosses[node])
    words = sorted((w for w in found if found[w] < len(taken) / 10), key=lambda w: (-found[w], w))
    column = {word: i for i, word in enumerate(words[:WORDS])}
    features = np.zeros((len(taken), WORDS), np.uint8)
    for node, row in taken.items():
        features[row, [column[w] for w in glosses[node] if w in column]] = 1
    edges = sorted(
        (taken[a], taken[b]) for a in taken for b in neighbours[a] if b in taken and a < b
    )
    order = sorted(CLASSES)
    labels = np.array([order.index(kinds[node]) for node in taken], np.uint8)
    labelled = [chance.sample(np.flatnonzero(labels == c).tolist(), LABELLED) for c in range(7)]
    return {
        "features": np.packbits(features, axis=1),
        "edges": np.array(edges, np.uint16).T,
        "labels": labels,
        "labelled": np.sort(np.array(labelled, np.uint16).ravel()),
    }


def _nouns(path: Path) -> tuple[dict[int, int], dict[int, set[str]], dict[int, set[int]]]:
    """Read class, words of the definition and neighbours of each noun of the seven classes.

    A line is `offset file pos words word... pointers (symbol offset pos xx)... | definition`.
    """
    kinds, glosses, links = {}, {}, []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        data, gloss = line.split(" | ", 1)
        fields = data.split()
        node, kind = int(fields[0]), int(fields[1])
        if kind not in CLASSES:
            continue
        kinds[node] = kind
        glosses[node] = set(re.findall(r"[a-z]{3,}", gloss.lower()))
        first = 5 + 2 * int(fields[3], 16)
        for at in range(first, first + 4 * int(fields[first - 1]), 4):
            if fields[at] in RELATIONS and fields[at + 2] == "n":
                links.append((node, int(fields[at + 1])))
    neighbours: dict[int, set[int]] = {node: set() for node in kinds}
    for a, b in links:
        if a in kinds and b in kinds:
            neighbours[a].add(b)
            neighbours[b].add(a)
    return kinds, glosses, neighbours
