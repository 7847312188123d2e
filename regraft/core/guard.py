"""Where numbers come from that are not finite: the weights, the rows of the batch, the terms of the loss, the layer.

Nothing here runs before a step has been found that must not be made, see `core.finite`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from regraft.core.finite import ADVICE, NAMED, Pass, Trouble, bad_weights, listed, modules_of, not_finite, plain
from regraft.core.seeding import seed_default
from regraft.core.trial import trial
from regraft.core.values import Batch, split

if TYPE_CHECKING:
    from regraft.core.run import Run


class Finding(NamedTuple):
    """What was found out about a step that must not be made."""

    text: str  # stage, step, what is wrong, and the first place it is in
    advice: str


def explained(run: Run, trouble: Trouble) -> str:
    """What `found` gives, as one sentence."""
    finding = found(run, trouble)
    return f"{finding.text}; {finding.advice}"


def found(run: Run, trouble: Trouble) -> Finding:
    """What is wrong with the step being run, and where it comes from.

    It runs the forward pass of the step once more, with a look at the output of every layer; the run is left as it was,
    without gradients.
    """
    text = f"stage {run.stage.name!r}: {trouble.what} at step {run.clock.step + 1:,}"
    made_of = trouble.made_of
    weights = bad_weights(run)
    if weights:
        places, advice = (
            [f"{listed(weights, 'weight', 'weights')} not finite before it"],
            f"{ADVICE}, or let the technique Guard roll back",
        )
    elif made_of is None:
        places, advice = [], f"{ADVICE}, or let the technique Guard skip such steps"
    else:
        rows = [_rows(run, key, made_of.batch) for key in not_finite(made_of.batch.items())]
        terms = not_finite(made_of.loss.terms.items())
        where = [f"{listed(terms, 'term of the loss', 'terms of the loss')} not finite"] if terms else []
        places = [*rows, *where, _layer(run, made_of)]
        advice = f"{'repair or drop these rows' if rows else ADVICE}, or let the technique Guard skip such steps"
    return Finding(f"{text} ({'; '.join(places)})" if places else text, advice)


def _rows(run: Run, key: str, batch: Batch) -> str:
    """`'x' of the batch is not finite in row 3 (example 17)`."""
    bad = (~batch[key].detach().isfinite()).reshape(len(batch[key]), -1).any(1).nonzero().flatten().cpu()
    ids = batch.get(run.stage.source.inputs.get(key, ""))
    examples = ids[bad.to(ids.device)].cpu() if ids is not None and ids.shape == (len(batch[key]),) else bad
    rows, named = (cast(list[int], part[:NAMED].tolist()) for part in (bad, examples))  # pyright: ignore[reportUnknownMemberType]
    several, more = "s" * (len(bad) > 1), ", ..." * (len(bad) > NAMED)
    text = f"{key!r} of the batch is not finite in row{several} {_joined(rows)}{more}"
    return text if examples is bad else f"{text} (example{several} {_joined(named)}{more})"


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


class _Found(Exception):  # no error: it ends a forward pass at the layer that was looked for
    pass


def _layer(run: Run, made_of: Pass) -> str:
    """`the output of layer 'head' is the first that is not finite`, found by making the gradients of the batch again."""
    modules = modules_of({"": run.stage.model, "objective": run.stage.objective})
    names = {module: name or type(module).__name__ for name, module in modules}
    first: list[str] = []

    def look(module: nn.Module, _: Any, output: object) -> None:
        if not first and not_finite(("", tensor) for tensor in _tensors(output)):
            first.append(names[module])
            raise _Found

    handles = [module.register_forward_hook(look) for module in names]
    try:
        with trial(run), _same_numbers(run), torch.enable_grad():
            return _again(run, made_of)
    except _Found:
        return f"the output of layer {first[0]!r} is the first that is not finite"
    except RuntimeError as error:
        return f"the forward pass could not be repeated: {error}"
    finally:
        for handle in handles:
            handle.remove()


def _again(run: Run, made_of: Pass) -> str:
    """What a second forward and backward pass says, if the output of no layer is to blame."""
    trained = run.stage.trainable()
    bad: set[str] = set()
    for part in split(made_of.batch, made_of.micro):
        with made_of.mode():
            value = made_of.loss_fn(part).value
        if not bool(value.isfinite()):
            return "the outputs of all layers are finite"
        grads = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
        bad |= set(not_finite(zip(trained, grads, strict=True)))
    if bool(made_of.loss.value.isfinite()):
        return "the forward pass is finite"
    if bad:  # as where an update makes two passes, and the first one's gradient was not finite
        return f"{listed([plain(name) for name in trained if name in bad], 'gradient', 'gradients')} not finite"
    return "a second pass over the same batch was finite, so the device or the objective is not deterministic"


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(cast(Mapping[object, object], value).values()))
    elif isinstance(value, list | tuple):
        for item in cast(Sequence[object], value):
            yield from _tensors(item)


@contextmanager
def _same_numbers(run: Run) -> Generator[None]:
    """Inside, dropout draws what it drew in the step; after it the generators are what they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        seed_default(run.seed, run.index, run.clock.step)
        yield
