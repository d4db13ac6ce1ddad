"""Published worlds in the engine: opening them, prompts and pictures, rewrites, restarts, snapshots, long rollouts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import engine
from tests import published as p
from tests import published_sims as ps
from tests.published_sims import begin, make_sim, roll
from tests.worlds import make_world

LONGLIVE = {"window": 6, "sink": 1, "block": 1, "rewrite": "window"}
CAUSVID = {"window": 9, "sink": 0, "block": 3, "restart": (9, 3), "codec": "vae", "steps": (1000,)}


# --- opening -------------------------------------------------------------------------------------------------------


def open_tiny(path, **extras):
    return engine.load(path, "cpu", "float32", extras.pop("preset", ps.preset()), **{"codec": "preview", **extras})


def test_a_world_folder_loads_as_before(tmp_path):
    folder = make_world(tmp_path / "tiny")
    assert engine.load(folder).spec.name == "tiny"
    with pytest.raises(ValueError, match=r"world folder.*preset"):
        engine.load(folder, preset="causvid")
    with pytest.raises(ValueError, match=r"world folder.*codec"):
        engine.load(folder, codec="preview")


def test_a_published_file_without_a_preset_names_the_presets():
    with pytest.raises(ValueError, match="preset=.*PRESETS") as error:
        engine.load(ps.checkpoint())
    assert "self-forcing" in str(error.value)


def test_a_mistyped_path_is_no_published_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worlds").mkdir()
    with pytest.raises(ValueError, match="no world at worlds/doom"):
        engine.load("worlds/doom")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'longlive'"):
        engine.load(ps.checkpoint(), preset="longlve")


@pytest.mark.parametrize(("kind", "other"), [("text", "game"), ("game", "text")])
def test_weights_and_preset_have_to_go_together(kind, other):
    with pytest.raises(ValueError, match=r"Matrix-Game.*preset"):
        open_tiny(ps.checkpoint(kind), preset=ps.preset(other))


def test_a_preset_of_other_keys_is_refused():
    with pytest.raises(ValueError, match="'gta_drive' has 2 keys, and the weights are for 4"):
        open_tiny(ps.checkpoint("game"), preset=replace(ps.preset("game"), mode="gta_drive"))


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"codek": "preview"}, "'codek'.*codec"),
        ({"codec": "mp4"}, "codec 'mp4'"),
        ({"numerics": "quick"}, "numerics 'quick'"),
        ({"size": (32, 50)}, "multiples of 16"),
        ({"base": "/nowhere"}, "base '/nowhere'"),
        ({"lora": "/nowhere/lora.pt"}, "/nowhere/lora.pt"),
    ],
)
def test_arguments_are_checked(extras, message):
    with pytest.raises(ValueError, match=message):
        open_tiny(ps.checkpoint(), **extras)


def test_a_missing_vae_is_named_with_where_it_was_looked_for(tmp_path):
    path = p.write_self_forcing(tmp_path, p.tiny_wan_tensors())
    with pytest.raises(ValueError, match=r"Wan2\.1_VAE\.pth.*checkpoints.*codec='preview'"):
        open_tiny(path, codec="vae")
    elsewhere = tmp_path / "elsewhere"
    p.write_torch(elsewhere / "Wan2.1_VAE.pth", ps.tiny_vae().state_dict())
    model = open_tiny(path, codec="vae", base=elsewhere)
    assert model.codec.spec == ps.TINY_VAE


def test_a_codec_of_other_latents_is_refused(tmp_path):
    path = p.write_self_forcing(tmp_path, p.tiny_wan_tensors())
    torch.manual_seed(0)
    vae = type(ps.tiny_vae())(replace(ps.TINY_VAE, channels=8), mean=[0.0] * 8, std=[1.0] * 8)
    p.write_torch(tmp_path / "Wan2.1_VAE.pth", vae.state_dict())
    with pytest.raises(ValueError, match=r"8 latent channels|8 channels"):
        open_tiny(path, codec="vae")


def weights(model):
    return {name: x.clone() for name, x in model.denoiser.state_dict().items()}


def test_the_adapter_beside_longlive_is_merged_and_another_where_it_is_named(tmp_path):
    tensors = p.tiny_wan_tensors()
    lora, other = p.tiny_lora(tensors), p.tiny_lora(tensors, seed=1)
    base, _ = p.write_longlive(tmp_path, tensors, lora)
    elsewhere = p.write_torch(tmp_path / "other" / "lora.pt", {"generator_lora": p.peft_names(other)})
    name = "blocks.0.self_attn.q"
    for made, used in ((open_tiny(base), lora), (open_tiny(base, lora=elsewhere), other)):
        want = tensors[f"{name}.weight"] + used[f"{name}.lora_B"] @ used[f"{name}.lora_A"]
        torch.testing.assert_close(weights(made)[f"{name}.weight"], want, atol=1e-6, rtol=1e-5)
    half = open_tiny(base, lora_alpha=2.0)  # of rank 4
    want = tensors[f"{name}.weight"] + 0.5 * lora[f"{name}.lora_B"] @ lora[f"{name}.lora_A"]
    torch.testing.assert_close(weights(half)[f"{name}.weight"], want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_truncated_checkpoint_fails_before_anything_is_allocated(tmp_path, monkeypatch, suffix):
    tensors = p.prefixed(p.tiny_wan_tensors())
    path = tmp_path / f"model.{suffix}"
    (p.write_safetensors if suffix == "safetensors" else p.write_torch)(path, tensors)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    monkeypatch.setattr("engine.opening.fill", lambda *a, **k: pytest.fail("something was allocated"))
    with pytest.raises(ValueError, match="cut short"):
        open_tiny(path)


def test_a_checkpoint_without_one_tensor_fails_before_a_number_is_read(tmp_path, monkeypatch):
    tensors = p.prefixed(p.tiny_wan_tensors())
    del tensors["model.blocks.1.ffn.2.bias"]
    path = p.write_safetensors(tmp_path / "model.safetensors", tensors)
    monkeypatch.setattr("engine.checkpoints.filling._placed", lambda *a: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=r"missing blocks\.1\.ffn\.2\.bias"):
        open_tiny(path)


@pytest.mark.parametrize("kind", ["text", "game"])
def test_fast_numerics_differ_from_the_published_ones_by_rounding(kind):
    """Over 6 blocks: float32 to 1e-5 of latents of unit size; bf16 a relative RMS below 5 %, a PSNR above 36 dB (of
    the latents' range)."""
    made = {}
    for dtype in ("float32", "bfloat16"):
        for numerics in ("published", "fast"):
            sim = make_sim(kind, dtype=dtype, numerics=numerics)
            made[dtype, numerics] = torch.cat([b.latents for b in roll(sim, begin(sim), 6)])
    torch.testing.assert_close(made["float32", "fast"], made["float32", "published"], atol=1e-5, rtol=1e-5)
    want, off = made["bfloat16", "published"], made["bfloat16", "fast"] - made["bfloat16", "published"]
    rms = float(off.square().mean().sqrt())
    assert 0 < rms / float(want.square().mean().sqrt()) < 0.05
    assert 20 * np.log10(float(want.max() - want.min()) / rms) > 36
    assert torch.equal(want, want.bfloat16().float())  # the published code keeps latents in bf16
    assert not torch.equal(made["bfloat16", "fast"], made["bfloat16", "fast"].bfloat16().float())
