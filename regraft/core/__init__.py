"""The training core: six concepts and one loop.

Objective   (model, batch, clock) -> Loss        what is wanted
Update      (loss_fn, batch, clock) -> Loss      how one loss becomes one parameter change
Step        (batch, clock) -> Loss               which updates one batch causes (default: one)
Stage       model + source + objective + update + step + hooks + length    one phase of training
Technique   Recipe -> Recipe, applied before the loop                       how dozens of ideas plug in
Hook        on_start / on_step / on_end                                     what must happen between steps

Three rules keep them composable. Only the Stage holds the model: sources, objectives, updates and steps receive it late.
Techniques act before the loop. A technique declares what it provides, wraps, ignores and reads, and `compile` holds it to that.
"""

from regraft.core.compile import compile, explain
from regraft.core.descent import Descent, OneUpdate
from regraft.core.forward import forward
from regraft.core.protocols import Hook, Objective, Source, Step, Update, UpdateWrapper
from regraft.core.run import Run
from regraft.core.stage import Recipe, Stage, each_stage, trainable
from regraft.core.technique import Technique
from regraft.core.train import Report, fit
from regraft.core.values import Batch, Clock, Loss

__all__ = [
    "Batch", "Clock", "Descent", "Hook", "Loss", "Objective", "OneUpdate", "Recipe", "Report", "Run", "Source", "Stage", "Step",
    "Technique", "Update", "UpdateWrapper", "compile", "each_stage", "explain", "fit", "forward", "trainable",
]  # fmt: skip
