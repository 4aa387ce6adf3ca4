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


def timed(images: int = 2) -> list[dict[str, Any]]:
    """Speed alone, on a vision transformer of the usual size with random weights."""
    import timm
    import torch

    import secateur as sec

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = timm.create_model("vit_small_patch16_224").eval()
    x = torch.randn(images, 3, 224, 224)
    rows: list[dict[str, Any]] = []
    for method, options in (
        ("tome", {"merged": 8}),
        ("tome", {"merged": 13}),
        ("evit", {"keep": 0.7, "blocks": [3, 6, 9]}),
        ("evit", {"keep": 0.5, "blocks": [3, 6, 9]}),
    ):
        gated = sec.gate(model, method, data=[(x,)], **options)
        found = sec.measure(gated.model, x, against=model, repeats=9, warmup=1)
        row = {"method": method, "options": options, "counted": dict(gated.counted())}
        rows.append(row | {"speedup": round(found.against.speedup.ratio, 3)})
    return rows
