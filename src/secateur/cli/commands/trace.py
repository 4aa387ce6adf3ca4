"""Show what can be removed from a model, and what goes with what."""

from __future__ import annotations

import argparse

from secateur.cli import config, flags, models
from secateur.cli.answer import Answer

EXAMPLES = (
    "secateur trace zoo:resnet8",
    "secateur trace zoo:resnet8 --explain layer2.0.conv2",
    "secateur trace torchvision:resnet18 --input 2x3x64x64 --draw graph.svg",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and what to show of its graph."""
    parser.add_argument("model", metavar="MODEL", help=models.FORMS)
    parser.add_argument(
        "--explain",
        action="append",
        default=[],
        metavar="NAME",
        help="which units go with those of this module, and through which operators",
    )
    parser.add_argument("--draw", metavar="FILE", help="write a picture: graph.svg or graph.html")
    flags.add(parser, "original inputs batch seed")


def run(options: argparse.Namespace) -> Answer:
    """Trace; nothing is computed, so that large models take no memory."""
    import secateur as sec

    chosen = config.make({**flags.given(options), "model": options.model})
    source, model, inputs = models.open_model(chosen)
    graph = sec.trace(model, inputs)
    found = {
        "model": source.spec,
        "parameters": sum(p.numel() for p in model.parameters()),
        "prunable_share": graph.prunable_share,
        "unknown_operators": dict(graph.unknown),
        "classes": [
            {
                "name": c.name,
                "kind": c.kind,
                "size": c.size,
                "locked": c.locked,
                "exact": c.exact,
                "statistical": list(c.statistical),
                "over": c.over,
                "members": [
                    {"tensor": m.tensor, "axis": m.axis, "produces": m.produces} for m in c.members
                ],
            }
            for c in graph.classes.values()
        ],
    }
    explained = {name: graph.explain(name) for name in options.explain}
    text = "\n\n".join(explained.values()) if explained else str(graph)
    if explained:
        found["explained"] = explained
    if options.draw:
        graph.draw(options.draw)
        found["drawn"] = options.draw
        text += f"\n\nwritten: {options.draw}"
    return Answer(found, text)
