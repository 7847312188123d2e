"""Kills, resumes and flipped bits with the Trainer of transformers, resumed from the newest checkpoint as its guide says.

python benchmarks/arms/reliability_hf.py kills|resumes|flips [--count 30]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reliability_lab import BATCH, Job, Watch, digits, end, look, main, network


class HuggingFace:
    """`trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))`."""

    name = "HF Trainer"

    def train(self, folder: Path, job: Job, watch: Watch) -> Mapping[str, Any]:
        """From the newest checkpoint, if there is one."""
        import torch
        from torch import nn
        from transformers import Trainer, TrainerCallback, TrainingArguments
        from transformers.trainer_utils import get_last_checkpoint

        class Classifier(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network()

            def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
                logits = self.network(x)
                return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

        class Rows(torch.utils.data.Dataset):
            def __init__(self) -> None:
                self.x, self.y = digits()

            def __len__(self) -> int:
                return len(self.y)

            def __getitem__(self, row: int) -> dict[str, Any]:
                return {"x": look(self.x[row], job.augment), "labels": self.y[row]}

        class Seen(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                watch.begun.set(state.global_step)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                watch.made.set(state.global_step)

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == job.dies_before:
                    end()

        arguments = TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=job.steps, learning_rate=1e-3,
            save_strategy="steps", save_steps=job.every, save_total_limit=2, logging_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=True, seed=0, dataloader_num_workers=job.workers, dataloader_pin_memory=False,
            remove_unused_columns=False,
        )  # fmt: skip
        Trainer._save_checkpoint = watch.around(Trainer._save_checkpoint)
        trainer = Trainer(model=Classifier(), args=arguments, train_dataset=Rows(), callbacks=[Seen()])
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
        return trainer.model.state_dict()

    def newest(self, folder: Path) -> Path:
        """The folder of the last step."""
        return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


if __name__ == "__main__":
    import logging

    import accelerate  # noqa: F401 - imported before the first fork
    from transformers import Trainer  # noqa: F401

    logging.disable(logging.WARNING)
    digits()
    main(HuggingFace())
