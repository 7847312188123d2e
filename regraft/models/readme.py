"""The README of a saved model: at most 20 lines of plain PyTorch that load it, run one input and give its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GRID = "torch.nn.functional.adaptive_avg_pool2d(h, 2).flatten(1)"
POOLS = {
    "tokens": {
        "mean": "(h * m).sum(1) / m.sum(1).clamp(min=1)",
        "max": "h.masked_fill(m == 0, -3.4e38).amax(1)",
        "first": "h[:, 0]",
    },
    "causal": {
        "mean": "(h * m).sum(1) / m.sum(1).clamp(min=1)",
        "max": "h.masked_fill(m == 0, -3.4e38).amax(1)",
        "last": "h[range(len(h)), m.sum((1, 2)) - 1]",
    },
    "map": {"mean": "h.mean((2, 3))", "max": "h.amax((2, 3))", "grid": GRID},
    "vector": {"mean": "h"},
}  # fmt: skip


def graft_code(
    info: Mapping[str, Any], *, loads_plainly: bool, pooler_option: bool, lora: bool, padded: bool, size: list[int]
) -> str:
    """The code for a graft on a transformers backbone, to be run inside its folder; prints and leaves `logits`.

    Args:
        info: what model.json says.
        loads_plainly: does `AutoModel.from_pretrained` give the network as it is?
        pooler_option: does the model take `add_pooling_layer`?
        lora: is it a backbone in `backbone/` and a peft adapter?
        padded: does it compute its padding from a layer's attributes (`tf_padding`)?
        size: shape of one image (C, H, W); [] for text.
    """
    base = "backbone" if lora else "."
    text = info["modality"] == "text"
    option = ", add_pooling_layer=False" if pooler_option else ""
    lines = ["import json, peft, torch" if lora else "import json, torch", "from safetensors.torch import load_file"]
    lines.append("from transformers import AutoConfig, AutoModel" + (", AutoTokenizer" if text else ""))
    lines.append('info, head = json.load(open("model.json")), load_file("head.safetensors")')
    if loads_plainly:
        lines.append(f'net = AutoModel.from_pretrained("{base}"{option}).eval()')
    else:
        lines.append(f'net = AutoModel.from_config(AutoConfig.from_pretrained("{base}"){option}).eval()')
        if info["cut"]["dropped"]:
            lines.append(
                'for name in reversed(info["cut"]["dropped"]): del net.get_submodule(name.rpartition(".")[0])[-1]'
            )
        lines.append(f'net.load_state_dict(load_file("{base}/model.safetensors"), strict=False)')
    if lora and padded:  # MobileNet computes its padding from attributes that peft's layers do not hand on
        lines.append('for name in ("stride", "kernel_size", "dilation"):')
        given = "property(lambda m, name=name: getattr(m.base_layer, name))"
        lines.append(f"    setattr(peft.tuners.lora.Conv2d, name, {given})")
    if lora:
        lines.append('net = peft.PeftModel.from_pretrained(net, ".").eval().base_model.model')
    lines += [
        "seen = {}",
        'for depth, name in info["modules"].items():',
        "    net.get_submodule(name).register_forward_hook(lambda m, a, out, depth=depth:",
        "        seen.update({depth: out[0] if isinstance(out, tuple) else out}))",
    ]
    if text:
        lines.append('batch = AutoTokenizer.from_pretrained(".")(["an example"], truncation=True, return_tensors="pt")')
        lines.append(f"batch = {{key: batch[key] for key in {list(info['inputs'])!r}}}")
    else:
        lines.append(
            f"batch = {{{info['inputs'][0]!r}: torch.full((1, {', '.join(map(str, size))}), 0.5)}}  # a grey image"
        )
    lines.append("with torch.no_grad(): net(**batch)")
    lines += _pooling(info, text=text)
    lines.append('logits = features @ head["weight"].T + head["bias"]')
    lines.append("print(logits.tolist())")
    return "\n".join(lines)


def _pooling(info: Mapping[str, Any], *, text: bool) -> list[str]:
    """Lines that join the pooled outputs to `features`."""
    kinds = sorted({info["kinds"][str(depth)] for depth, _ in info["reads"]})
    lines = []
    if {"tokens", "causal"} & set(kinds):
        lines.append('m = batch["attention_mask"].unsqueeze(-1)' if text else "m = torch.ones(1, 1, 1)")
    used = {(info["kinds"][str(depth)], pool) for depth, pool in info["reads"]}
    table = ", ".join(f'"{kind} {pool}": lambda h: {POOLS[kind][pool]}' for kind, pool in sorted(used))
    if not text:
        table = table.replace("(h * m).sum(1) / m.sum(1).clamp(min=1)", "h.mean(1)")
        table = table.replace("h.masked_fill(m == 0, -3.4e38).amax(1)", "h.amax(1)")
        lines = []
    lines.append(f"pools = {{{table}}}")
    reads = [[str(depth), f"{info['kinds'][str(depth)]} {pool}"] for depth, pool in info["reads"]]
    lines.append(f"features = torch.cat([pools[pool](seen[depth]) for depth, pool in {reads!r}], 1)")
    return lines


def page(info: Mapping[str, Any], code: str, note: str) -> str:
    """The README as Markdown."""
    labels = ", ".join(str(label) for label in info["labels"][:20]) + (", ..." if len(info["labels"]) > 20 else "")
    head = [f"# {info['name']}, adapted", "", f"Task: {info['task']}. Outputs: {labels or 'one number'}."]
    if info.get("licence"):
        head.append(f"Licence of the pretrained weights, as stated with them: {info['licence']}.")
    body = ["", note]
    if code:
        body += ["", "```python", code, "```"]
    return "\n".join([*head, *body, ""])
