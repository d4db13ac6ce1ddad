"""The patch discriminator: its losses pull the right way and nowhere else, none changes nothing, and runs resume."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import engine.training.codec
from engine.codecs.autoencoder import AutoEncoder
from engine.training.codec import CodecConfig, codec_loss, last_weight, texture_distance, train_codec
from engine.training.data import Episode, Shards, write_shard
from engine.training.discriminator import Adversary, PatchDiscriminator, balance, feature_distance, hinge_loss
from engine.training.fit import FitConfig
from engine.training.rarity import ColourRarity

CPU = torch.device("cpu")
CONFIG = CodecConfig(
    channels=4,
    widths=(8, 8, 16),
    depth=1,
    adversarial=0.5,
    adversarial_after=2,
    matching=1.0,
    fit=FitConfig(steps=6, batch=2, warmup=2, every=0.0, validate_every=100),
)


def make_frames(seed: int, count: int = 8) -> np.ndarray:
    """Noise with a bright square: what a codec of this size blurs."""
    frames = np.random.default_rng(seed).integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
    frames[:, 10:14, 10:14] = (250, 200, 60)
    return frames


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    zeros = np.zeros(8, np.float32)
    for seed, split in enumerate(("train", "validation")):
        episode = Episode(
            make_frames(seed), zeros.astype(np.int64), zeros, np.uint8(zeros), np.uint8(zeros + 1), zeros[:, None]
        )
        write_shard(folder / f"{split}-00000.safetensors", [episode], {})
    return folder


@pytest.fixture
def signals():
    """Real frames and the same ones blurred, [4, 3, 32, 32]."""
    real = torch.from_numpy(make_frames(0, 4)).permute(0, 3, 1, 2) / 127.5 - 1
    return real, torch.nn.functional.avg_pool2d(real, 3, 1, 1)


def make_codec() -> AutoEncoder:
    torch.manual_seed(0)
    return AutoEncoder(CONFIG.channels, CONFIG.widths, CONFIG.depth)


def make_adversary(**changes) -> Adversary:
    torch.manual_seed(0)
    return Adversary(CPU, width=8, **changes)


def loss_of(codec: AutoEncoder, data, adversary: Adversary | None = None, share: float = 0.0):
    """The codec's loss on the same frames and latent noise every time."""
    shards = Shards(data)
    frames, before = torch.from_numpy(shards.frames(1, 5)), torch.from_numpy(shards.frames(0, 4))
    rarity = ColourRarity.of(shards)
    torch.manual_seed(1)
    return codec_loss(codec, frames, before, rarity, CONFIG, adversary, share)


def train(config: CodecConfig, data, folder) -> AutoEncoder:
    folder.mkdir(exist_ok=True)
    return train_codec(config, data, folder, CPU)


def read_checkpoint(folder) -> dict:
    return torch.load(folder / "codec.pt", weights_only=True)


def same(a: AutoEncoder, b: AutoEncoder) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_logit_sees_a_patch_of_28_pixels():
    x = torch.zeros(1, 3, 64, 96, requires_grad=True)
    logits, features = PatchDiscriminator(8)(x)
    assert logits.shape == (1, 1, 16, 24)
    assert len(features) == 3
    logits[0, 0, 8, 12].backward()
    rows, columns = x.grad.abs().sum((0, 1)).nonzero().unbind(1)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (28, 28)


def test_hinge_loss_falls_as_real_and_made_part_and_then_rests():
    zeros, far = torch.zeros(3), torch.full((3,), 5.0)
    assert hinge_loss(zeros, zeros) == 2
    assert hinge_loss(far, -far) == 0
    assert hinge_loss(-far, far) == 12


def test_the_discriminator_learns_to_tell_blurred_frames_and_leaves_them_alone(signals):
    real, made = signals
    made = made.requires_grad_()
    adversary = make_adversary()
    losses = [adversary.learn(real, made) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert made.grad is None
    assert adversary.term(real, made) > adversary.term(real, real)  # a made frame has further to go


def test_the_term_falls_along_its_gradient_and_reaches_the_made_frames_alone(signals):
    real, made = signals
    adversary = make_adversary(matching=1.0)
    for _ in range(30):
        adversary.learn(real, made)
    before = copy.deepcopy(adversary.state_dict())
    adversary.optimizer.zero_grad()
    made.requires_grad_()
    term = adversary.term(real, made)
    term.backward()
    assert adversary.term(real, made - 0.01 * made.grad.sign()) < term
    assert all(p.grad is None for p in adversary.net.parameters())
    after = adversary.state_dict()
    assert all(torch.equal(before["net"][name], value) for name, value in after["net"].items())


def test_feature_distance_is_none_between_the_same_and_has_no_scale(signals):
    real, made = ([x, 2 * x] for x in signals)
    assert feature_distance(real, real) == 0
    assert feature_distance(real, made) > 0
    scaled = feature_distance([3 * x for x in real], [3 * x for x in made])
    torch.testing.assert_close(scaled, feature_distance(real, made))


def test_texture_is_grain_wherever_it_lies_and_blur_lacks_it(signals):
    real, made = signals
    assert texture_distance(real, real) == 0
    moved = real.roll(3, dims=-1)
    assert texture_distance(moved, real) < 0.5 * texture_distance(made, real)
    pixels = [(x - real).abs().mean() for x in (moved, made)]
    assert pixels[0] > pixels[1]  # an error of single pixels says the contrary


def test_balance_makes_gradients_equally_long_at_the_last_layer(data):
    codec = make_codec()
    last = last_weight(codec)
    assert last is codec.decoder.layers[-2].weight
    out = codec.decoder(torch.randn(2, 4, 4, 4))
    own, term = 100 * out.square().mean(), out.abs().mean()
    lengths = [
        torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (own, balance(own, term, last) * term)
    ]
    assert lengths[0] == pytest.approx(float(lengths[1]), rel=0.01)
    assert not balance(own, term, last).requires_grad


def test_a_share_of_none_is_the_plain_loss_and_more_changes_its_gradient(data):
    codecs = [make_codec() for _ in range(3)]
    adversaries = None, make_adversary(), make_adversary()
    (plain, without), (deaf, metrics), (heard, _) = (
        loss_of(codec, data, adversary, share)
        for codec, adversary, share in zip(codecs, adversaries, (0.0, 0.0, 0.5), strict=True)
    )
    assert list(without) == ["mse"]
    assert 0 < metrics["discriminator"] < 10
    assert torch.equal(plain, deaf)
    before, after = (
        torch.autograd.grad(x, last_weight(codec))[0] for x, codec in zip((deaf, heard), codecs[1:], strict=True)
    )
    assert (after - before).norm() == pytest.approx(0.5 * float(before.norm()), rel=0.1)


def test_without_it_no_discriminator_is_made(data, tmp_path, monkeypatch):
    """And the plain run is the run whose decoder does not hear the discriminator yet."""
    heard_never = train(replace(CONFIG, adversarial_after=100), data, tmp_path / "deaf")
    monkeypatch.setattr(engine.training.codec, "Adversary", None)
    plain = train(replace(CONFIG, adversarial=0.0), data, tmp_path / "plain")
    assert same(plain, heard_never)
    assert "companion" not in read_checkpoint(tmp_path / "plain")


def test_a_killed_run_goes_on_with_its_discriminator(data, tmp_path, monkeypatch):
    """6 steps at once, and 4 + 2 with the kill inside a step, give the same bits, the discriminator's too."""
    whole = train(CONFIG, data, tmp_path / "whole")
    count, term = iter(range(100)), Adversary.term

    def killed(self, real, made):
        if next(count) == 2:
            raise KeyboardInterrupt
        return term(self, real, made)

    monkeypatch.setattr(Adversary, "term", killed)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, data, tmp_path / "killed")
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "killed")["step"] == 4
    assert same(whole, train(CONFIG, data, tmp_path / "killed"))
    states = [read_checkpoint(tmp_path / name) for name in ("whole", "killed")]
    torch.testing.assert_close(*(state["companion"] for state in states), rtol=0, atol=0)


def test_a_checkpoint_goes_on_only_with_what_it_was_trained_with(data, tmp_path):
    off = replace(CONFIG, adversarial=0.0)
    train(CONFIG, data, tmp_path / "on")
    train(off, data, tmp_path / "off")
    with pytest.raises(ValueError, match="with a companion"):
        train(off, data, tmp_path / "on")
    with pytest.raises(ValueError, match="with no companion"):
        train(CONFIG, data, tmp_path / "off")


@pytest.mark.parametrize("setting", ["texture", "adversarial", "adversarial_after", "matching"])
def test_settings_below_zero_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} -1"):
        replace(CONFIG, **{setting: -1})
