"""The techniques under contract, a row each: a setting that has an effect, and one that changes nothing if there is one."""

from __future__ import annotations

import torch
from techniques.reader import Reader
from torch import Tensor, nn

from regraft.models.networks import Residual
from regraft.optim.optimizers import Adam
from regraft.techniques.alignment.grpo import GRPO
from regraft.techniques.augment.back_translation import BackTranslation
from regraft.techniques.augment.image import ColorJitter, ImageGeometry
from regraft.techniques.augment.rand_augment import RandAugment
from regraft.techniques.augment.sound import SpecAugment, TimeStretch
from regraft.techniques.augment.text import SynonymReplacement, TextEdit
from regraft.techniques.continual.ewc import EWC
from regraft.techniques.control.adam_to_sgd import AdamToSGD
from regraft.techniques.control.hypergradient_lr import HypergradientLR
from regraft.techniques.control.pcgrad import PCGrad
from regraft.techniques.control.stop_when import StopWhen
from regraft.techniques.control.uncertainty_weighting import UncertaintyWeighting
from regraft.techniques.distil.distillation import Distillation
from regraft.techniques.domain.dann import DANN
from regraft.techniques.generative.gan import GAN
from regraft.techniques.meta.maml import MAML
from regraft.techniques.peft.adapter import Adapter
from regraft.techniques.peft.lora import LoRA
from regraft.techniques.peft.prefix_tuning import PrefixTuning
from regraft.techniques.peft.prompt_tuning import PromptTuning, PTuning
from regraft.techniques.peft.qlora import QLoRA
from regraft.techniques.regularise.dropout import DropConnect, Dropout, DropPath, SpatialDropout
from regraft.techniques.regularise.gsam import GSAM
from regraft.techniques.regularise.information_bottleneck import InformationBottleneck
from regraft.techniques.regularise.l0_penalty import L0Penalty
from regraft.techniques.regularise.mixup import CutMix, MixUp
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.regularise.weight_average import WeightAverage
from regraft.techniques.regularise.weight_penalty import L1Penalty, L2Penalty, OrthogonalPenalty
from regraft.techniques.reliability.guard import Guard
from regraft.techniques.speed.activation_checkpointing import ActivationCheckpointing
from regraft.techniques.speed.channels_last import ChannelsLast
from regraft.techniques.speed.compile import Compile
from regraft.techniques.speed.prefetch import Prefetch
from regraft.techniques.stability.group_norm import GroupNorm
from regraft.techniques.stability.init import Init
from regraft.techniques.stability.weight_norm import SpectralNorm, WeightNorm
from regraft.techniques.transfer.adaptive_backprop import AdaptiveBackprop
from regraft.techniques.transfer.add_layers import AddLayers
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.techniques.transfer.discriminative import Discriminative
from regraft.techniques.transfer.fisher_norms import FisherNorms
from regraft.techniques.transfer.last_k import LastK
from regraft.techniques.transfer.staged_thaw import StagedThaw
from regraft.techniques.transfer.train_only import AttentionOnly, BitFit, FFNOnly, NormOnly, TrainOnly
from regraft.testing import Case, EachClass, Players, ToyPictures, ToySounds, ToyTexts, blobs, network


def half_frozen(dropout: float) -> nn.Module:
    """The toy network with its first layer frozen, so that there is a prefix to store."""
    model = network(dropout)
    next(model.children()).requires_grad_(False)
    return model


def convolutions(dropout: float) -> nn.Module:
    """Rows of 8 columns as maps of 2 x 2 points, through two convolutions; the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16), nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 8, 2, padding=1), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip


class Gathering(nn.Module):
    """What mixes tokens: softmax(q k^T) v."""

    def __init__(self) -> None:
        super().__init__()
        self.together, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.together(x).chunk(3, dim=-1)
        return self.out((query @ key.transpose(1, 2)).softmax(-1) @ value)


class TokenBlock(nn.Module):
    """Attention over tokens (N, L, 4), then a feed-forward layer for each."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.gather = Gathering()
        self.each = nn.Sequential(
            nn.LayerNorm(4), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 4)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gather(x)
        return x + self.each(x)


def tokens(dropout: float) -> nn.Module:
    """Rows of 8 columns as two tokens, through two blocks with attention; the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 8), nn.Unflatten(1, (2, 4)), TokenBlock(dropout), TokenBlock(dropout), nn.Flatten(), nn.Linear(8, 4)
        )  # fmt: skip


def residual(dropout: float) -> nn.Module:
    """Two residual blocks between linear layers; the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), Residual(16, dropout), Residual(16, dropout), nn.Linear(16, 4))


TEXTS = [text for seed in (0, 1) for text in ToyTexts(blobs(seed=seed)[0]).texts]
REVERSED = {text: (" ".join(reversed(text.split())),) for text in TEXTS}
DOUBLED = {word.lstrip("-"): ("1.5",) for text in TEXTS for word in text.split()}


def batch_normed(dropout: float) -> nn.Module:
    """Batch normalisation between linear layers; the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.BatchNorm1d(16),
            nn.ReLU(), nn.Linear(16, 4),
        )  # fmt: skip


ROWS = [
    Case(ActivationCheckpointing(blocks="all"), effect=False),
    Case(AdamToSGD(at=0.4), gentle=Adam(lr=0.05, eps=1.0)),
    Case(AdaptiveBackprop(rho=0.5, weigh=0.4), neutral=AdaptiveBackprop(rho=1.0)),
    Case(Adapter(width=4)),
    Case(AddLayers(width=8)),
    Case(AttentionOnly(), network=tokens),
    Case(BackTranslation(paraphrases=REVERSED), neutral=BackTranslation(share=0), shows=ToyTexts),
    Case(BitFit()),
    Case(CachePrefix(), network=half_frozen, effect=False),
    Case(ChannelsLast(), network=convolutions, effect=False),
    Case(ColorJitter(), neutral=ColorJitter(brightness=0, contrast=0, saturation=0, hue=0), shows=ToyPictures),
    Case(Compile(), effect=False),
    Case(CutMix(mixup_alpha=0.4), neutral=CutMix(alpha=0), shows=ToyPictures),
    Case(DANN(target="target", width=8), neutral=DANN(target="target", weight=0)),
    Case(Discriminative(decay=0.5, head=2.0), neutral=Discriminative(decay=1, head=1)),
    Case(Distillation(teacher="teacher"), neutral=Distillation(teacher="teacher", weight=0)),
    Case(DropConnect(rate=0.3), neutral=DropConnect(rate=0), noisy=True),
    Case(DropPath(rate=0.5), neutral=DropPath(rate=0), network=residual, noisy=True),
    Case(Dropout(rate=0.3), neutral=Dropout(rate=0.2), noisy=True),  # 0.2 is what the network has there
    Case(SpatialDropout(rate=0.3), neutral=SpatialDropout(rate=0), network=convolutions, noisy=True),
    Case(EWC(weight=50.0, samples=16), neutral=EWC(weight=0)),
    Case(FFNOnly(), network=tokens),
    Case(FisherNorms(layers=1, samples=8)),
    Case(GAN(rounds=2), network=Players),
    Case(GRPO(group_size=4, kl_weight=0.1)),
    Case(GSAM(rho=0.1, alpha=0.5), neutral=GSAM(rho=0)),
    Case(GroupNorm(groups=4), network=batch_normed),
    Case(Guard(on_trouble="roll_back", spike=3.0, every=2), neutral=Guard(on_trouble="stop"), effect=False),
    Case(ImageGeometry(flip=0.5), neutral=ImageGeometry(rotate=0, shift=0, scale=0), shows=ToyPictures),
    Case(HypergradientLR(beta=0.1), neutral=HypergradientLR(beta=0)),
    Case(InformationBottleneck(weight=0.01, log_variance=-2), neutral=InformationBottleneck(weight=0), noisy=True),
    Case(Init(kind="lsuv")),
    Case(L0Penalty(weight=0.001), neutral=L0Penalty(weight=0), noisy=True),
    Case(L1Penalty(weight=0.01), neutral=L1Penalty(weight=0)),
    Case(L2Penalty(weight=0.01), neutral=L2Penalty(weight=0)),
    Case(LastK(blocks=1)),
    Case(LoRA(rank=2)),
    Case(MAML(ways=3, shots=2, queries=2, tasks=4)),
    Case(MixUp(alpha=0.4), neutral=MixUp(alpha=0)),
    Case(NormOnly()),
    Case(OrthogonalPenalty(weight=0.01), neutral=OrthogonalPenalty(weight=0)),
    Case(PCGrad(), objective=EachClass()),
    Case(PTuning(tokens=2, hidden=4), network=Reader),
    Case(Prefetch(batches=2), effect=False),
    Case(PrefixTuning(tokens=2), network=Reader),
    Case(PromptTuning(tokens=2), network=Reader),
    Case(QLoRA(rank=2)),
    Case(RandAugment(), neutral=RandAugment(number=0), shows=ToyPictures),
    Case(SAM(rho=0.1), neutral=SAM(rho=0)),
    Case(SpecAugment(time_width=0.6), neutral=SpecAugment(frequency_masks=0, time_masks=0), shows=ToyPictures),
    Case(SpectralNorm(modules="*")),
    Case(StagedThaw()),
    Case(StopWhen(gradient_norm=1e-6, step_norm=1e-6), neutral=StopWhen(gradient_norm=0), effect=False),
    Case(SynonymReplacement(share=0.3, table=DOUBLED), neutral=SynonymReplacement(share=0), shows=ToyTexts),
    Case(TextEdit(), neutral=TextEdit(delete=0, swap=0), shows=ToyTexts),
    Case(TimeStretch(), neutral=TimeStretch(most=0), shows=ToySounds),
    Case(TrainOnly(kind="norm", parameters="*3.bias")),
    Case(UncertaintyWeighting(), objective=EachClass()),
    Case(WeightNorm()),
    Case(WeightAverage(decay=0.5), neutral=WeightAverage(decay=0)),
]
CASES = {case.name: case for case in ROWS}
