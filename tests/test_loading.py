"""World folders: round trip, and one clear error for each way a file can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import load
from engine.actions import ContinuousActions, DictActions, DiscreteActions
from engine.codecs.autoencoder import AutoEncoder
from engine.spec import KVPolicy, WorldSpec
from tests.worlds import TINY, make_modules, make_world


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path / "w")


def edit(world, change) -> None:
    tensors = load_file(world / "model.safetensors")
    change(tensors)
    save_file(tensors, world / "model.safetensors")


def test_a_world_survives_the_round_trip(world):
    model = load(world, dtype=torch.float32)
    assert model.spec == TINY
    expected = make_modules(TINY).denoiser.state_dict()
    for name, tensor in model.denoiser.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-3, rtol=1e-3)


def test_specs_round_trip_through_json():
    dict_actions = DictActions((("a", DiscreteActions(2)), ("b", ContinuousActions((0.0,), (1.0,)))))
    for actions in (DiscreteActions(4, ("w", "x", "y", "z")), ContinuousActions((-1.0,), (1.0,)), dict_actions):
        spec = WorldSpec("x", (32, 64), 5.0, actions, kv=KVPolicy(None, 0), block=2)
        assert WorldSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_encoding_one_action_equals_encoding_its_row():
    actions = DictActions((("a", DiscreteActions(3)), ("b", ContinuousActions((-2.0, 0.0), (2.0, 1.0)))))
    encoded = actions.encode({"a": 2, "b": [1.0, 0.25]})
    assert encoded.tolist() == [0, 0, 1, 0.5, -0.5]
    assert np.array_equal(actions.encode_rows(np.array([[2, 1.0, 0.25]], np.float32))[0], encoded)


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(world):
    def change(tensors):
        tensors["denoiser.embed.wieght"] = tensors.pop("denoiser.embed.weight")
        tensors["denoiser.place"] = torch.zeros(3, 3)

    edit(world, change)
    with pytest.raises(ValueError, match="does not fit its card") as caught:
        load(world)
    text = str(caught.value)
    assert "missing denoiser.embed.weight [32, 16]" in text
    assert "unexpected denoiser.embed.wieght [32, 16] (nearest: denoiser.embed.weight)" in text
    assert "denoiser.place is [3, 3], expected [4, 32]" in text


def test_truncated_and_absent_files(world, tmp_path):
    weights = world / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load(world)
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load(world)
    with pytest.raises(ValueError, match="no world at"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("{}", "no 'spec'"), ('{"spec": {}}', "no world spec")]
)
def test_bad_cards(world, text, message):
    (world / "world.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(world)


@pytest.mark.parametrize("changes", [{"frame": (33, 32)}, {"num_steps": 0}, {"context_noise": 1.0}])
def test_impossible_specs(changes):
    with pytest.raises(ValueError, match=r"must|at least"):
        WorldSpec(**{"name": "x", "frame": (32, 32), "fps": 1.0, "actions": DiscreteActions(2), **changes})


def test_the_codec_streams():
    """Frames coded one by one, with the state passed on, equal frames coded together."""
    torch.manual_seed(0)
    codec = AutoEncoder(4, (8, 8, 16), 1).eval()
    codec.mean.normal_()
    codec.std.uniform_(0.5, 2)
    frames = torch.randint(0, 256, (2, 5, 32, 32, 3), dtype=torch.uint8)
    whole, _ = codec.encode(frames)
    out, _ = codec.decode(whole)
    state_in = state_out = None
    for t in range(5):
        latent, state_in = codec.encode(frames[:, t : t + 1], state_in)
        torch.testing.assert_close(latent, whole[:, t : t + 1], atol=1e-5, rtol=1e-4)
        frame, state_out = codec.decode(latent, state_out)
        assert (frame.int() - out[:, t : t + 1].int()).abs().max() <= 1
    assert out.shape == frames.shape
    assert out.dtype == torch.uint8
