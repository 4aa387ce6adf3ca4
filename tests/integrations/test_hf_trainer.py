"""The Hugging Face Trainer runs as it is with an attached handle."""

import pytest
import torch
from torch import nn

import secateur as sec

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def model() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def samples(n: int = 24) -> list[dict]:
    g = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(0, 40, (8,), generator=g), "labels": index % 3}
        for index in range(n)
    ]


class InOrder(transformers.Trainer):
    """The batches in the order of the samples, so that a loop by hand can see the same."""

    def _get_train_sampler(self, *_):
        return None


@pytest.mark.parametrize("name", ["rigl", "gradual_magnitude", "movement"])
def test_a_training_equals_the_loop_by_hand(name: str, tmp_path) -> None:
    options = {"amount": 0.7, "steps": 3, "ignore": ["*embeddings*"]}
    if name == "rigl":
        options["every"] = 2
    net, other = model(), model()
    a, b = (torch.optim.SGD(n.parameters(), lr=0.5, momentum=0.5) for n in (net, other))
    ours, theirs = sec.attach(net, a, name, **options), sec.attach(other, b, name, **options)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=1,
        max_grad_norm=0.5,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    InOrder(net, arguments, train_dataset=samples(), optimizers=(a, None)).train()
    assert ours.steps == 3
    other.train()
    data = samples()
    for start in range(0, 24, 8):
        batch = data[start : start + 8]
        ids = torch.stack([s["input_ids"] for s in batch])
        labels = torch.tensor([s["labels"] for s in batch])
        other(input_ids=ids, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        b.step()
        b.zero_grad()
    masks = ours.finish().masks
    assert masks == theirs.finish().masks
    for n, mask in masks.items():
        assert not bool(net.get_parameter(n)[~mask].any())
    torch.testing.assert_close(net.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-5)
