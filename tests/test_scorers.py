"""Scorers: VBench's formulas on hand-made features, stand-ins on known motion and damage, models with tiny weights."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import nn

from inferix_env.evaluation.scorers import NAMES, Scorer, choose, flow, looks, published, stand_ins, vision
from inferix_env.evaluation.scorers.amt import Between
from inferix_env.evaluation.scorers.scorer import Consistency, Interpolated, Mean, Pairs, blocks_of, itself


def texture(height: int = 96, width: int = 128, seed: int = 0, radius: float = 1.5) -> np.ndarray:
    """A smooth random picture, uint8 [H, W, 3], of full contrast."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    x = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(radius)), np.float64)
    return np.uint8((x - x.min()) / (x.max() - x.min()) * 255)


def panning(count: int = 12, speed: int = 1, seed: int = 0) -> np.ndarray:
    """A window that moves over a texture, uint8 [count, 48, 64, 3]."""
    wide = texture(48, 64 + speed * count, seed)
    return np.stack([wide[:, speed * t : speed * t + 64] for t in range(count)])


def blurred(frames: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(radius))) for f in frames])


def of(name: str) -> Scorer:
    return {scorer.name: scorer for scorer in stand_ins()}[name]


def tallied(tally, *parts) -> float:
    for part in parts:
        tally.add(np.asarray(part))
    return tally.value()


# VBench's formulas.


def test_consistency_by_hand():
    features = [[2.0, 0.0], [3.0, 4.0], [0.0, 1.0]]  # cosines to the first 0.6, 0; to the one before 0.6, 0.8
    assert tallied(Consistency(), features) == pytest.approx(((0.6 + 0.6) / 2 + (0 + 0.8) / 2) / 2)


def test_consistency_counts_opposites_as_unlike_and_no_less():
    assert tallied(Consistency(), [[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]) == pytest.approx((0 + (1 + 0) / 2) / 2)


def test_consistency_of_a_still_is_one():
    assert tallied(Consistency(), [[0.3, 0.4]] * 5) == pytest.approx(1)


def test_interpolation_by_hand():
    # Frames 1 and 3 are dropped; their neighbours' means are 20 and 40; the last frame has no neighbour after it.
    frames = [np.full((2, 2, 3), grey, np.uint8) for grey in (10, 25, 30, 33, 50, 90)]
    between = lambda a, b: (a.astype(np.float32) + b) / 2  # noqa: E731
    assert tallied(Interpolated(between), frames) == pytest.approx((255 - (5 + 7) / 2) / 255)


def test_pairs_by_hand():
    frames = [np.full((2, 2, 3), grey, np.uint8) for grey in (10, 25, 30)]
    change = lambda a, b: (b.astype(float) - a).mean((1, 2, 3))  # noqa: E731
    assert tallied(Pairs(change), frames) == pytest.approx(10)


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_a_clip_scores_the_same_whatever_blocks_it_comes_in(name, cut):
    frames, scorer = panning(11, 2), of(name)
    assert scorer.score_blocks(blocks_of(frames, cut)) == pytest.approx(scorer.score(frames), rel=1e-5)


def test_clips_too_short_for_a_metric_say_what_it_needs():
    one = panning(1)
    for tally, needed in ((Consistency(), "2 or more"), (Pairs(flow.speed), "2 or more"), (Mean(), "1 or more")):
        with pytest.raises(ValueError, match=needed):
            tally.value()
    with pytest.raises(ValueError, match="1 frames: consistency"):
        of("subject").score(one)
    with pytest.raises(ValueError, match="needs 3 or more"):
        of("motion").score(panning(2))
    with pytest.raises(ValueError, match="not finite"):
        Consistency().add(np.array([[np.nan, 1.0]]))


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_what_is_no_clip_is_refused(frames):
    with pytest.raises(ValueError, match="expected uint8"):
        of("clarity").score(frames)


# Stand-ins.


def test_every_scorer_says_what_it_is():
    made = stand_ins()
    assert tuple(scorer.name for scorer in made) == NAMES
    for scorer in made:
        assert scorer.stand_in
        assert scorer.method
        assert scorer.moves


def test_flow_finds_a_known_shift():
    wide = texture(72, 120, radius=3)
    for shift in (-3, 1, 4):
        a, b = wide[None, :, 30:94], wide[None, 2:, 30 + shift : 94 + shift]
        found = flow.flow_between(flow.grey(flow.shrunk(a[:, :70])), flow.grey(flow.shrunk(b)))
        inner = found[0, :, 8:-8, 8:-8].mean((1, 2))
        assert inner.tolist() == pytest.approx([-shift, -2], abs=0.25)


def test_frames_between_follow_the_motion_where_a_mean_would_not():
    frames = panning(9, 2)
    mean = lambda a, b: (a.astype(np.float32) + b) / 2  # noqa: E731
    assert tallied(Interpolated(flow.between), frames) > tallied(Interpolated(mean), frames) + 0.01


def test_dynamic_is_the_speed_and_nothing_for_a_still():
    assert of("dynamic").score(np.repeat(panning(1), 5, axis=0)) == 0
    slow, fast = (of("dynamic").score(panning(6, speed)) for speed in (1, 3))
    assert slow == pytest.approx(1 * 256 / 48, rel=0.4)  # of the fastest pixels: somewhat above
    assert 2 * slow < fast


def test_motion_is_smoothest_for_a_still_and_falls_with_flicker():
    still = np.repeat(panning(1), 9, axis=0)
    moving = panning(9, 2)
    flickering = np.uint8(moving * np.where(np.arange(9) % 2, 0.7, 1.0)[:, None, None, None])
    assert of("motion").score(still) == pytest.approx(1, abs=1e-3)
    assert 1 > of("motion").score(moving) > of("motion").score(flickering) + 0.02


def test_clarity_falls_step_by_step_with_blur():
    frames = panning(2)
    scores = [of("clarity").score(blurred(frames, radius)) for radius in (0, 1, 2, 4)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.5 * scores[0]
    assert of("clarity").score(np.full((2, 16, 16, 3), 90, np.uint8)) == 0


def test_clarity_of_a_pure_wave_is_its_frequency():
    x = 127 + 100 * np.sin(2 * np.pi * 0.125 * np.arange(128))
    wave = np.broadcast_to(x[None, None, :, None], (1, 128, 128, 3)).astype(np.uint8)
    assert looks.spectral_sharpness(wave)[0] == pytest.approx(0.125, abs=0.03)


def test_colourfulness_by_hand():
    assert of("aesthetic").score(np.full((1, 4, 4, 3), 77, np.uint8)) == 0
    half = np.zeros((1, 4, 4, 3), np.uint8)
    half[:, :, :2] = (100, 0, 0)  # red-green 100 or 0, yellow-blue 50 or 0: spreads 50, 25; means 50, 25
    assert of("aesthetic").score(half) == pytest.approx(1.3 * np.hypot(50, 25))


@pytest.mark.parametrize(("name", "other"), [("subject", "background"), ("background", "subject")])
def test_what_changes_in_one_place_is_seen_by_the_scorer_of_that_place(name, other):
    frames = np.repeat(texture(48, 64)[None], 6, axis=0)
    alien = 255 - np.repeat(texture(48, 64, seed=5, radius=4)[None], 6, axis=0) // 2
    inside = np.zeros((48, 64, 1), bool)
    inside[12:36, 16:48] = True
    swapped = np.where(inside if name == "subject" else ~inside, alien, frames)
    swapped[:3] = frames[:3]
    assert of(name).score(swapped) < of(name).score(frames) - 0.05
    assert of(other).score(swapped) == pytest.approx(of(other).score(frames), abs=0.01)


# Models.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Tiny random CLIP, DINO and LAION head, in the layouts of the real ones."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    for name, patch in (("clip-vit-base-patch32", 32), ("clip-vit-large-patch14", 14)):
        vision_config = {**common, "patch_size": patch, "projection_dim": 8}
        text_config = {**common, "vocab_size": 50, "projection_dim": 8}
        config = transformers.CLIPConfig(projection_dim=8, vision_config=vision_config, text_config=text_config)
        transformers.CLIPModel(config).save_pretrained(folder / name)
    dino = transformers.ViTModel(transformers.ViTConfig(**common), add_pooling_layer=True)
    dino.save_pretrained(folder / "dino-vitb16")
    torch.save(nn.Linear(8, 1).state_dict(), folder / "sa_0_4_vit_l_14_linear.pth")
    return folder


def test_models_are_loaded_from_a_folder_and_take_the_place_of_stand_ins(weights):
    scorers = choose(("subject", "background", "aesthetic"), weights)
    assert [scorer.name for scorer in scorers if not scorer.stand_in] == ["aesthetic", "background", "subject"]
    assert tuple(scorer.name for scorer in scorers) == NAMES


def test_background_is_vbench_of_clips_image_features(weights):
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(weights / "clip-vit-base-patch32").eval()
    frames = panning(5, 6)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    pixels = torch.nn.functional.interpolate(pixels, (224, 298), mode="bicubic")[..., 37:261] / 255
    pixels = (pixels - torch.tensor(vision.CLIP_MEAN)[:, None, None]) / torch.tensor(vision.CLIP_STD)[:, None, None]
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(pixels).pooler_output).numpy()
    assert published.background(weights / "clip-vit-base-patch32").score(frames) == pytest.approx(
        tallied(Consistency(), seen), abs=1e-4
    )


def test_subject_sees_all_of_a_wide_frame(weights):
    scorer = published.subject(weights / "dino-vitb16")
    frames = panning(3, 6)
    seen = scorer.look(frames)
    assert seen.shape == (3, 16)
    edge = frames.copy()
    edge[:, :, :6] = 255 - edge[:, :, :6]
    assert np.abs(scorer.look(edge) - seen).max() > 1e-4
    assert 0 <= scorer.score(frames) <= 1


def test_aesthetic_is_the_head_on_unit_features_over_ten(weights):
    scorer = published.aesthetic(weights / "sa_0_4_vit_l_14_linear.pth", weights / "clip-vit-large-patch14")
    frames = panning(4, 4)
    head = torch.load(weights / "sa_0_4_vit_l_14_linear.pth", weights_only=True)
    unit = torch.nn.functional.normalize(scorer.look.clip.features(frames), dim=-1)  # type: ignore[attr-defined]
    expected = (unit @ head["weight"][0] + head["bias"][0]).mean() / 10
    assert scorer.score(frames) == pytest.approx(float(expected), abs=1e-5)


def test_models_of_another_shape_or_kind_are_refused(weights, tmp_path):
    save_file({"weight": torch.zeros(1, 9), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="do not fit Linear"):
        published.aesthetic(tmp_path / "head.safetensors", weights / "clip-vit-large-patch14")
    with pytest.raises(ValueError, match="is no CLIPVisionModelWithProjection"):
        published.background(weights / "dino-vitb16")
    with pytest.raises(ValueError, match="cannot be loaded"):
        published.subject(tmp_path / "nowhere")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        published.aesthetic(tmp_path / "broken.pth", weights / "clip-vit-large-patch14")


def test_what_was_asked_for_and_is_missing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected some of clarity"):
        choose(("sharpness",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="subject by its published model needs dino-vitb16 in it"):
        choose(("subject",), tmp_path)
    with pytest.raises(ValueError, match="clarity by its published model needs musiq"):
        choose(("clarity",))
    with pytest.raises(ValueError, match="no such folder"):
        choose((), tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "file"), [("clarity", "musiq_spaq_ckpt-358bb6af.pth"), ("dynamic", "raft_large.pth")])
def test_a_missing_package_names_the_extra(name, file, tmp_path, monkeypatch):
    for package in ("pyiqa", "pyiqa.archs.musiq_arch", "torchvision", "torchvision.models.optical_flow"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / file).touch()
    with pytest.raises(ValueError, match=r"inferix-env\[metrics\]"):
        choose((name,), tmp_path)


class FakeMusiq(nn.Module):
    """MUSIQ's interface: pictures [T, 3, H, W] in 0..1 -> [T, 1] in 0..100. Says how bright they are."""

    def __init__(self, pretrained: bool = True):
        super().__init__()
        assert not pretrained
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        assert max(x.shape[-2:]) <= 512
        return 100 * self.scale * x.mean((1, 2, 3))[:, None]


class FakeRaft(nn.Module):
    """RAFT's interface: pictures in -1..1, sides from 128 in steps of 8 -> a list of flows. All moves (3, 4)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, a, b, num_flow_updates: int = 12):
        assert a.shape == b.shape
        assert min(a.shape[-2:]) >= 128
        assert not any(side % 8 for side in a.shape[-2:])
        assert a.abs().max() <= 1
        flow = torch.tensor([3.0, 4.0])[None, :, None, None].expand(1, 2, *a.shape[-2:])
        return [0 * flow] * (num_flow_updates - 1) + [self.scale * flow]


def test_musiq_through_pyiqas_interface(tmp_path, monkeypatch):
    module = ModuleType("musiq_arch")
    module.MUSIQ = FakeMusiq  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa.archs.musiq_arch", module)
    torch.save({"scale": torch.tensor([0.5])}, tmp_path / "musiq_spaq_ckpt-358bb6af.pth")
    [scorer] = [s for s in choose(("clarity",), tmp_path) if s.name == "clarity"]
    assert scorer.score(np.full((3, 600, 40, 3), 51, np.uint8)) == pytest.approx(0.5 * 0.2)


def test_raft_through_torchvisions_interface(tmp_path, monkeypatch):
    module = ModuleType("optical_flow")
    module.raft_large = lambda weights: FakeRaft()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", module)
    torch.save({"module.scale": torch.tensor([1.0])}, tmp_path / "raft_large.pth")
    [scorer] = [s for s in choose(("dynamic",), tmp_path) if s.name == "dynamic"]
    assert scorer.score(np.zeros((3, 132, 140, 3), np.uint8)) == pytest.approx(5 * 256 / 132)
    assert scorer.score(np.zeros((3, 48, 64, 3), np.uint8)) == pytest.approx(5 * 256 / 128)  # enlarged


AMT_CODE = """
import torch
from networks.blocks.mix import mixed
class Model(torch.nn.Module):
    def __init__(self, corr_radius=3, corr_lvls=4, num_flows=3):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def forward(self, img0, img1, embt, scale_factor=1.0, eval=False):
        assert eval and img0.shape[0] == 1 and not img0.shape[2] % 16 and not img0.shape[3] % 16
        return {"imgt_pred": self.weight * mixed(img0, img1, embt)}
"""


def test_amt_runs_from_its_checkout(tmp_path, monkeypatch):
    checkout = tmp_path / "AMT"
    (checkout / "networks" / "blocks").mkdir(parents=True)
    (checkout / "networks" / "__init__.py").touch()
    (checkout / "networks" / "blocks" / "__init__.py").touch()
    (checkout / "networks" / "blocks" / "mix.py").write_text("def mixed(a, b, t): return (1 - t) * a + t * b\n")
    (checkout / "networks" / "AMT-S.py").write_text(AMT_CODE)
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "amt-s.pth")
    try:
        [scorer] = [s for s in choose(("motion",), tmp_path) if s.name == "motion"]
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "networks"]:
            del sys.modules[name]
    frames = np.stack([np.full((20, 30, 3), grey, np.uint8) for grey in (10, 25, 30)])
    assert scorer.score(frames) == pytest.approx((255 - 5) / 255)
    assert str(checkout) not in sys.path
    with pytest.raises(ValueError, match=r"no networks/AMT-S\.py"):
        published.motion(tmp_path, tmp_path / "amt-s.pth")


def test_interpolated_frames_keep_their_size_where_the_network_pads():
    class Mean2(nn.Module):
        def forward(self, a, b, t, eval):
            return {"imgt_pred": (a + b) / 2}

    a, b = panning(2, 4)[:, :45, :50]
    assert Between(Mean2(), "cpu")(a[None], b[None]).shape == (1, 45, 50, 3)
    assert itself(a) is a
