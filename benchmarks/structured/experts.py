"""REAP on a mixture of experts that is trained here: bytes of Wikipedia text, eight experts."""

from __future__ import annotations

import copy
from typing import Any

STEPS, LENGTH, BATCH = 150, 96, 16


def measured(steps: int = STEPS) -> dict[str, Any]:
    """Train a small Mixtral on bytes, remove experts by REAP, at random, and by REAP upside down.

    Args:
        steps: Of training.

    Returns:
        Bits per byte of held-out text, dense and by method and amount.
    """
    import torch
    from benchmarks.llm import material

    import secateur as sec
    from secateur.methods.after import reap
    from secateur.methods.routed import experts_of
    from secateur.plan.gaps import Gap, drop

    torch.set_num_threads(1)
    text = torch.tensor(list(material.text("wiki").encode()), dtype=torch.long)
    cut = int(0.8 * len(text))
    generator = torch.Generator().manual_seed(0)
    model = _trained(text[:cut], steps, generator)
    calibration = [_pieces(text[:cut], generator) for _ in range(8)]
    windows = text[cut:][: 32 * 256].view(32, 256)

    def bits(net: Any) -> float:
        with torch.inference_mode():
            losses = [float(net(input_ids=part, labels=part).loss) for part in windows.split(8)]
        return round(sum(losses) / len(losses) / torch.log(torch.tensor(2.0)).item(), 3)

    scores, tokens = reap.saliency(experts_of(model, calibration))
    rows: list[dict[str, Any]] = []
    for amount in (0.25, 0.5):
        row: dict[str, Any] = {"amount": amount}
        found = sec.prune(
            model, calibration[0], method="reap", amount=amount, data=calibration, measure=False,
            progress=False,
        )  # fmt: skip
        row["reap"], row["proof"] = bits(found.model), found.verification.error
        count = round(amount * 8)
        orders = {"upside down": lambda s: s.argsort(descending=True)}
        orders |= {
            f"random {k}": lambda s: torch.randperm(8, generator=generator) for k in range(3)
        }
        for name, order in orders.items():
            gaps = [Gap(n, experts=tuple(order(s)[:count].tolist())) for n, s in scores.items()]
            row[name] = bits(drop(copy.deepcopy(model), gaps))
        rows.append(row)
    least = min(int(t.min()) for t in tokens.values())
    return {"steps": steps, "dense": bits(model), "fewest tokens of an expert": least, "rows": rows}


def _trained(text: Any, steps: int, generator: Any) -> Any:
    import torch
    import transformers as hf

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "num_local_experts": 8, "num_experts_per_tok": 2, "output_router_logits": True,
        "router_aux_loss_coef": 0.02,
    }  # fmt: skip
    model = hf.MixtralForCausalLM(hf.MixtralConfig(**shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**_pieces(text, generator)).loss.backward()
        optimizer.step()
        schedule.step()
    model.config.output_router_logits = False
    return model.eval()


def _pieces(text: Any, generator: Any) -> dict[str, Any]:
    import torch

    starts = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=generator)
    ids = text[starts + torch.arange(LENGTH)]
    return {"input_ids": ids, "labels": ids}
