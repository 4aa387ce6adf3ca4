"""Run-time gates on the zoo's vision transformer: accuracy and measured latency, beside dense."""

from __future__ import annotations

from typing import Any

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("tome", {"merged": 4}),
    ("tome", {"merged": 8}),
    ("tome", {"merged": 12}),
    ("tome", {"merged": 8, "proportional": False}),
    ("evit", {"keep": 0.7, "blocks": [1, 2]}),
    ("evit", {"keep": 0.5, "blocks": [1, 2]}),
    ("dynatran", {"sparsity": 0.3}),
    ("dynatran", {"sparsity": 0.5}),
    ("dynatran", {"sparsity": 0.7}),
)


def measured(images: int = 2000) -> list[dict[str, Any]]:
    """Accuracy on the first test images, and speed on batches of 64, for every case.

    Args:
        images: How many to judge by.
    """
    import torch

    import secateur as sec

    torch.set_num_threads(1)
    model = sec.zoo.load("vit").eval()
    train, test = sec.zoo.loaders("vit", batch_size=64)
    given = [next(iter(train))]
    batches = [batch for _, batch in zip(range(images // 64 + 1), test, strict=False)]

    def accuracy(net: Any) -> float:
        with torch.no_grad():
            right = sum(int((net(x).argmax(1) == y).sum()) for x, y in batches)
        return right / sum(len(y) for _, y in batches)

    rows: list[dict[str, Any]] = [{"method": "dense", "accuracy": round(accuracy(model), 4)}]
    for method, options in CASES:
        gated = sec.gate(model, method, data=given, **options)
        found = sec.measure(gated.model, batches[0][0], against=model, repeats=15, warmup=2)
        row = {"method": method, "options": options, "accuracy": round(accuracy(gated.model), 4)}
        row |= {"speedup": round(found.against.speedup.ratio, 3), "counted": dict(gated.counted())}
        rows.append(row)
    return rows
