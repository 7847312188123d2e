"""Distillation: one pass of the student, one of the teacher per example, and a student that follows its teacher."""

from __future__ import annotations

import pytest
import torch
from toy import Tensors, blobs, mlp, recipe, stage

from regraft.core import compile, fit
from regraft.errors import Conflict
from regraft.techniques.distil.distillation import Distillation


def counted(module):
    calls = []
    module.register_forward_hook(lambda m, args, output: calls.append(len(args[0])))
    return calls


def test_the_student_runs_once_a_step_and_the_teacher_once_an_example():
    student, teacher = mlp(), mlp(seed=3)
    calls = counted(student)
    compiled = compile(recipe(stage(student, steps=40), models={"teacher": teacher}), [Distillation(teacher="teacher")])
    fit(compiled)
    assert calls == [32] * 40
    assert compiled.stages[0].source.computed == 256  # not 40 * 32


def test_a_weight_of_zero_costs_no_pass_of_the_teacher():
    teacher = mlp(seed=3)
    plain = recipe(stage(steps=3), models={"teacher": teacher})
    compiled = compile(plain, [Distillation(teacher="teacher", weight=0)])
    assert compiled.stages[0].source is plain.stages[0].source


def test_the_teacher_keeps_its_bits_and_its_mode():
    teacher = mlp(seed=3)
    before = [p.clone() for p in teacher.parameters()]
    fit(compile(recipe(stage(steps=5)), [Distillation(teacher=teacher)]))
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert all(p.requires_grad for p in teacher.parameters())


def test_without_labels_the_student_reaches_its_teacher_and_labels_alone_do_not():
    teacher = mlp(seed=1)
    fit(recipe(stage(teacher, steps=150)))
    few = blobs(256, seed=6)
    unlabelled = {"x": few["x"], "y": torch.where(torch.arange(256) < 8, few["y"], -1)}
    held_out = blobs(1000, seed=9)["x"]

    def agreement(techniques):
        student = mlp(width=8, seed=2)
        fit(compile(recipe(stage(student, steps=200, source=Tensors(unlabelled))), techniques))
        return float((student(held_out).argmax(-1) == teacher(held_out).argmax(-1)).float().mean())

    taught, alone = agreement([Distillation(teacher=teacher, weight=0.9)]), agreement([])
    assert taught > 0.9
    assert taught > alone + 0.05


def test_a_teacher_for_other_classes_is_refused_in_a_sentence():
    with pytest.raises(Conflict, match=r"the same two or more classes, got \(32, 7\) from the teacher and \(32, 4\)"):
        fit(compile(recipe(stage(steps=1)), [Distillation(teacher=mlp(classes=7))]))


def test_a_teacher_that_reads_other_inputs_is_refused_in_a_sentence():
    teacher = mlp()
    teacher.inputs = ("input_ids",)
    with pytest.raises(Conflict, match=r"the teacher reads 'input_ids', but the source of stage 'toy' yields \['x'\]"):
        compile(recipe(stage(steps=1)), [Distillation(teacher=teacher)])


def test_a_model_that_is_its_own_teacher_teaches_what_it_was():
    model = mlp()
    compiled = compile(recipe(stage(model, steps=3)), [Distillation(teacher=model)])
    assert compiled.stages[0].source.frozen.model is not model
    x = blobs()["x"]
    before = model(x)
    fit(compiled)
    assert torch.equal(compiled.stages[0].source.frozen.model(x), before)
    assert not torch.equal(model(x), before)
