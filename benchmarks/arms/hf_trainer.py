"""Full fine-tuning with the Trainer of transformers: as it comes, or tuned (bf16, batches of like length, fused AdamW, cosine).

python benchmarks/arms/hf_trainer.py SET [--default] [--epochs 5]
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from common import IMAGE_SETS, Epochs, minilm, report, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--default", action="store_true", help="the defaults but for the rate and the batch size")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    options = parser.parse_args()
    import numpy as np
    from tasks import accuracy, task
    from transformers import TrainerCallback

    data = task(options.set, options.rows)
    imported = seconds()
    trainer = make_trainer(data, options)
    precision = "fp32" if options.default else options.precision

    def evaluate() -> float:
        trainer.model.eval()
        found = accuracy(data, lambda inputs: trainer.model(**inputs).logits, precision=precision)
        trainer.model.train()
        return found

    epochs = Epochs(evaluate)

    class AtEpochEnd(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            epochs.end()

    trainer.add_callback(AtEpochEnd())
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    report(**epochs.result(imported=round(imported, 3), last_loss=float(np.mean(losses[-3:])) if losses else None))


def make_trainer(data: Any, options: argparse.Namespace, **more: Any) -> Any:
    """A Trainer over the examples, with the options of this script."""
    import torch
    from tasks import mobilenet, shifted
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    labels = data.labels["train"]
    if options.set in IMAGE_SETS:
        model = mobilenet(data.num_classes)
        dataset = Rows([{"pixel_values": x, "labels": y} for x, y in zip(data.pixels["train"], labels, strict=True)])

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            pixels = torch.stack([row["pixel_values"] for row in rows])
            moved = pixels if options.default else shifted(pixels)
            return {"pixel_values": moved, "labels": torch.stack([row["labels"] for row in rows])}
    else:
        from transformers import AutoTokenizer, DataCollatorWithPadding

        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=data.num_classes)
        rows = zip(data.ids["train"], labels.tolist(), strict=True)
        dataset = Rows([{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": y} for ids, y in rows])
        collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(minilm()))
    usual: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(prefix="bench-trainer-"),
        "per_device_train_batch_size": options.batch,
        "num_train_epochs": options.epochs,
        "learning_rate": options.rate,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        "remove_unused_columns": False,
    }
    tuned: dict[str, Any] = {
        "bf16": options.precision == "bf16",
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.06,
        "weight_decay": 0.01,
        "dataloader_pin_memory": False,
        "logging_steps": 50,
        "train_sampling_strategy": "random" if options.set in IMAGE_SETS else "group_by_length",
    }
    arguments = TrainingArguments(**usual | ({} if options.default else tuned) | more)
    return Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collate)


class Rows(list[dict[str, Any]]):
    """Examples in a list, which is all that a DataLoader asks for."""


if __name__ == "__main__":
    main()
