"""Kills, resumes and flipped bits with Lightning, resumed by `fit(ckpt_path="last")`.

python benchmarks/arms/reliability_lightning.py kills|resumes|flips [--count 30]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reliability_lab import BATCH, Job, Watch, digits, end, look, main, network


class Lightning:
    """`ModelCheckpoint(every_n_train_steps=..., save_last=True)` and `seed_everything(0, workers=True)`."""

    name = "Lightning"

    def train(self, folder: Path, job: Job, watch: Watch) -> Mapping[str, Any]:
        """From last.ckpt, if there is one."""
        import lightning.pytorch as pl
        import torch
        from lightning.pytorch.callbacks import ModelCheckpoint
        from torch import nn

        class Classifier(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = network()

            def training_step(self, batch: Any, index: int) -> torch.Tensor:
                x, y = batch
                return nn.functional.cross_entropy(self.network(x), y)

            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW(self.parameters(), lr=1e-3)

        class Rows(torch.utils.data.Dataset):
            def __init__(self) -> None:
                self.x, self.y = digits()

            def __len__(self) -> int:
                return len(self.y)

            def __getitem__(self, row: int) -> Any:
                return look(self.x[row], job.augment), self.y[row]

        class Seen(pl.Callback):
            def on_train_start(self, trainer: Any, pl_module: Any) -> None:
                watch.begun.set(trainer.global_step)

            def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
                watch.made.set(trainer.global_step)

            def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
                if trainer.global_step == job.dies_before:
                    end()

        pl.seed_everything(0, workers=True, verbose=False)
        pl.Trainer.save_checkpoint = watch.around(pl.Trainer.save_checkpoint)
        keep = ModelCheckpoint(dirpath=folder, every_n_train_steps=job.every, save_last=True)
        trainer = pl.Trainer(
            max_steps=job.steps, accelerator="cpu", logger=False, callbacks=[Seen(), keep], enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        module = Classifier()
        loader = torch.utils.data.DataLoader(Rows(), batch_size=BATCH, shuffle=True, num_workers=job.workers)
        trainer.fit(module, loader, ckpt_path="last")
        return module.state_dict()

    def newest(self, folder: Path) -> Path:
        """The file that `ckpt_path="last"` reads."""
        return max(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime)


if __name__ == "__main__":
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    import lightning.pytorch  # noqa: F401 - imported before the first fork

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    digits()
    main(Lightning())
