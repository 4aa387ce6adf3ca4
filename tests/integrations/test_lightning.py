"""Lightning's trainer runs as it is with an attached handle, and equals the loop by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import secateur as sec

lightning = pytest.importorskip("lightning.pytorch")

STEPS = 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 4))


def batches(n: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [
        (torch.randn(8, 12, generator=g), torch.randint(0, 4, (8,), generator=g)) for _ in range(n)
    ]


def loader() -> DataLoader:
    return DataLoader(batches(), batch_size=None)


class Classifier(lightning.LightningModule):
    """A plain module, as its tutorial writes it; ``attach`` is one line more."""

    def __init__(self, **attached) -> None:
        super().__init__()
        self.net, self.attached = network(), attached

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.attached:
            self.handle = sec.attach(self, optimizer, **self.attached)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def trainer(**more):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    chosen = {"max_epochs": 1, "accelerator": "cpu", "enable_checkpointing": False, **more}
    return lightning.Trainer(**quiet, **chosen)


def by_hand(method, clip: float, together: int) -> tuple[nn.Module, sec.MaskSet]:
    module = Classifier()
    found = module.configure_optimizers()
    optimizer, scheduler = found["optimizer"], found["lr_scheduler"]["scheduler"]
    handle = sec.attach(module, optimizer, **method)
    for index, batch in enumerate(batches(), 1):
        (module.training_step(batch, 0) / together).backward()
        if index % together:
            continue
        nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return module, handle.finish().masks


@pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*GPU available.*")
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("name", ["rigl", "gradual_magnitude", "l2", "edge_popup"])
def test_a_fit_equals_the_loop_by_hand(name: str, together: int) -> None:
    method = {"method": name, "amount": 0.7, "steps": STEPS // together}
    if name == "rigl":
        method["every"] = 2
    expected, masks = by_hand(method, 0.5, together)
    module = Classifier(**method)
    fit = trainer(gradient_clip_val=0.5, accumulate_grad_batches=together)
    fit.fit(module, loader())
    assert module.handle.steps == STEPS // together
    assert module.handle.finish().masks == masks
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value, msg=key)


@pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*in the `fit` loop.*")
def test_a_checkpoint_holds_the_attachment(tmp_path) -> None:
    from secateur.integrations.lightning import Attachment

    def callback() -> Attachment:
        return Attachment("rigl", amount=0.7, every=2, stop=1.0, steps=2 * STEPS)

    whole, ours = Classifier(), callback()
    trainer(max_epochs=2, callbacks=[ours]).fit(whole, loader())
    first, stopped = Classifier(), callback()
    fit = trainer(max_epochs=2, callbacks=[stopped], max_steps=STEPS)
    fit.fit(first, loader())
    assert stopped.result.masks != ours.result.masks
    kept = callback()
    half = trainer(max_epochs=1, callbacks=[kept, Saves(tmp_path / "half.ckpt")])
    half.fit(Classifier(), loader())
    again, resumed = Classifier(), callback()
    trainer(max_epochs=2, callbacks=[resumed]).fit(
        again, loader(), ckpt_path=tmp_path / "half.ckpt"
    )
    assert resumed.result.masks == ours.result.masks
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


class Saves(lightning.Callback):
    def __init__(self, path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.save_checkpoint(self.path)


def test_a_failed_fit_leaves_the_optimizer_free() -> None:
    from secateur.integrations.lightning import Attachment

    class Fails(Classifier):
        def training_step(self, batch, index):
            raise RuntimeError("out of luck")

    module, callback = Fails(), Attachment("random", amount=0.5)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(callbacks=[callback]).fit(module, loader())
    assert callback.handle is None
    sec.attach(module, torch.optim.SGD(module.parameters(), lr=0.1), "random").detach()
