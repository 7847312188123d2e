"""GRPO: its first gradient is REINFORCE, rollouts resume exactly, and the rewarded class is learned."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from toy import Tensors, adam, blobs, mlp, recipe, stage, weights

from regraft.core import Clock, compile, fit
from regraft.core.checkpoint import Checkpointer, load
from regraft.core.train import advance, start
from regraft.errors import ConfigError
from regraft.losses.policy import group_advantages
from regraft.techniques.alignment.grpo import GRPO, GroupRelative, Rollouts, label_reward

NOW = Clock(0, 1)


def test_the_rewarded_class_is_learned_and_a_constant_reward_teaches_nothing():
    def reward_at_end(technique):
        report = fit(compile(recipe(stage(steps=150, update=adam(1e-2))), [technique]))
        return report.last()["reward"]

    def accuracy(technique):
        chosen = stage(steps=150, update=adam(1e-2))
        fit(compile(recipe(chosen), [technique]))
        data = blobs(seed=3)
        return float((chosen.model(data["x"]).argmax(-1) == data["y"]).float().mean())

    assert reward_at_end(GRPO()) > 0.8
    assert accuracy(GRPO()) > 0.8 > 0.6 > accuracy(GRPO(reward=lambda batch, action: torch.ones(action.shape)))


def test_the_first_epochs_gradient_is_that_of_reinforce():
    policy, spec = mlp(), GRPO()
    source = Rollouts(Tensors(blobs()), spec)
    batch = next(source.batches(policy))
    params = list(policy.parameters())
    ours = torch.autograd.grad(GroupRelative(spec)(policy, batch, NOW).value, params)
    log_p = policy(batch["x"]).log_softmax(-1).gather(-1, batch["action"])
    reference = torch.autograd.grad(-(log_p * batch["advantage"]).mean(), params)
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_advantages_are_centred_and_scaled_within_each_prompts_group():
    reward = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
    advantage = group_advantages(reward)
    torch.testing.assert_close(advantage.mean(1), torch.zeros(3), rtol=0, atol=1e-6)
    assert torch.equal(advantage[1], torch.zeros(4))
    torch.testing.assert_close(advantage[2].std(), torch.tensor(1.0), rtol=1e-3, atol=0)


def test_a_rollout_serves_as_many_steps_as_asked_and_then_a_fresh_one_comes():
    policy, source = mlp(), Rollouts(Tensors(blobs()), GRPO(epochs=3))
    stream = source.batches(policy)
    drawn = [next(stream) for _ in range(7)]
    same = [one is other for one, other in pairwise(drawn)]
    assert same == [True, True, False, True, True, False]
    assert not torch.equal(drawn[0]["id"], drawn[3]["id"])


def test_actions_are_a_function_of_seed_and_rollout_and_of_nothing_else():
    def actions(seed, disturb):
        torch.manual_seed(disturb)
        return next(Rollouts(Tensors(blobs()), GRPO(seed=seed)).batches(mlp()))["action"]

    assert torch.equal(actions(1, 0), actions(1, 5))
    assert not torch.equal(actions(1, 0), actions(2, 0))


def test_the_policy_is_sampled_in_eval_mode_and_trained_in_training_mode():
    model = torch.nn.Sequential(*mlp(), torch.nn.Dropout(0.5))
    modes = []
    model.register_forward_hook(lambda module, args, output: modes.append(module.training))
    fit(compile(recipe(stage(model, steps=4)), [GRPO(epochs=2)]))
    assert modes == [False, True, True, False, True, True]


@pytest.mark.parametrize("stop", range(1, 8))
@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_a_run_stopped_in_the_middle_of_a_rollout_goes_on_with_it(tmp_path, stop, kl_weight):
    """The naive way draws the rollout again from the policy of the moment: exact at boundaries only."""

    def build():
        chosen = stage(steps=8, update=adam(0.05))
        return compile(recipe(chosen), [GRPO(epochs=3, kl_weight=kl_weight)])

    whole = build()
    fit(whole, hooks=[Checkpointer(tmp_path, every=1, keep=99)])
    again = build()
    state = load(tmp_path / f"step-{stop:08d}")
    fit(again, hooks=[Checkpointer(tmp_path / "b", every=99)], resume=state)
    assert torch.equal(weights(whole.model), weights(again.model))
    if stop % 3:  # without the live rollout it would not be
        naive = build()
        empty = {**state["source"], "index": -1, "live": {}}
        fit(naive, hooks=[Checkpointer(tmp_path / "c", every=99)], resume=state | {"source": empty})
        assert not torch.equal(weights(whole.model), weights(naive.model))


def test_the_divergence_is_from_the_model_as_the_stage_started():
    first = compile(recipe(stage(steps=20, update=adam(0.05))), [GRPO(epochs=1, kl_weight=1e-9)])
    report = fit(first, log_every=1)
    assert report.history[0]["divergence"] == pytest.approx(0, abs=1e-6)
    assert report.last()["divergence"] > 1e-3


def test_the_divergence_holds_the_policy_back():
    def moved(kl_weight):
        chosen = stage(steps=40, update=adam(0.01))
        report = fit(compile(recipe(chosen), [GRPO(kl_weight=kl_weight)]))
        return report.last()["divergence"]

    assert moved(5.0) < 0.5 * moved(1e-6)


def test_without_class_ids_the_label_reward_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="'label' needs one class id per example as `y`, got none"):
        label_reward({"x": torch.ones(2, 3)}, torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"got torch.float32 of shape \(2,\)"):
        label_reward({"y": torch.ones(2)}, torch.zeros(2, 4, dtype=torch.long))


def test_an_unlabelled_example_earns_nothing():
    reward = label_reward({"y": torch.tensor([-1, 2])}, torch.tensor([[0, 2], [2, 1]]))
    assert reward.tolist() == [[0, 0], [1, 0]]


def test_the_live_rollout_is_the_state_of_the_source():
    run = advance(start(compile(recipe(stage(steps=9)), [GRPO(epochs=4)])), 6)
    state = run.state_dict()["source"]
    assert state["index"] == 1
    assert state["live"]["action"].shape == (32, 8)
