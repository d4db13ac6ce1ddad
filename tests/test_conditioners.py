"""Conditioning encoders: against recorded numbers, at other sizes, from every kind of file, and their errors."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine.conditioners.cached_text import CachedText
from engine.conditioners.image import ClipVision, fit_image, read_image
from engine.conditioners.layouts import ClipSizes, TextSizes
from engine.conditioners.tensors import read_tensors
from engine.conditioners.text import TextEncoder, clean, read_tokenizer

PARITY = Path(__file__).parent / "parity" / "wan"
TEXT = TextSizes(vocabulary=300, width=24, inner=40, heads=5, ffn=36, layers=3, buckets=16)
CLIP = ClipSizes(width=160, ffn=96, heads=2, layers=4, patch=4, side=3, projection=8)
XXL = TextSizes(vocabulary=256384, width=4096, inner=4096, heads=64, ffn=10240, layers=24, buckets=32)
VIT_H = ClipSizes(width=1280, ffn=5120, heads=16, layers=32, patch=14, side=16, projection=1024)


def oracle(name: str):
    """Metadata, tensors and weights of a recorded case."""
    with safe_open(PARITY / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        case = json.loads(file.metadata()["case"])
    return case, tensors, {k.removeprefix("weights."): x for k, x in tensors.items() if k.startswith("weights.")}


def randoms(shapes, prefix: str = "") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {prefix + name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def weights():
    return randoms(TEXT.shapes())


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A real tokenizer, small: words, letters, and bytes for what is neither, as umT5's."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"<0x{i:02X}>", -20.0) for i in range(256))]
    pieces += [("▁", -3.0), ("▁a", -2.0), ("▁forest", -2.0), *((letter, -6.0) for letter in "abcdefghijklmno&")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    template = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.post_processor = template
    # Settings of its own, which must not matter.
    tokenizer.enable_padding(length=7)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def encoder(weights, tokenizer_folder):
    return TextEncoder.from_tensors(weights, tokenizer_folder, text_tokens=20)


# ---- the text encoder


def test_text_equals_the_published_encoder():
    case, t, weights = oracle("text_encoder_umt5")
    encoder = TextEncoder.from_tensors(weights)
    tolerance = {key: case["tolerance"][key] for key in ("atol", "rtol")}
    out = encoder.encode_ids(t["in.ids"], t["in.mask"])
    torch.testing.assert_close(out, t["out.prompt_embeds"], **tolerance)
    bias = encoder.model.encoder.block[0].layer[0].SelfAttention.compute_bias(150, 150)[0]
    torch.testing.assert_close(bias[:, 0], t["out.position_bias.layer0.first_row"], **tolerance)
    torch.testing.assert_close(bias[:, -1], t["out.position_bias.layer0.last_row"], **tolerance)
    for row, length in enumerate(case["model"]["lens"]):
        assert out[row, :length].ne(0).any(1).all()
        assert not out[row, length:].any()


def test_sizes_are_read_from_shapes(weights):
    assert TextSizes.of(weights) == TEXT
    config = TextEncoder.from_tensors(weights).model.config
    found = (config.num_heads, config.d_kv, config.num_layers, config.vocab_size, config.d_ff)
    assert found == (5, 8, 3, 300, 36)
    assert config.relative_attention_num_buckets == 16


def test_leaving_padding_out_equals_masking_it(weights):
    """The whole rows with a mask, as published, against each prompt by itself."""
    encoder = TextEncoder.from_tensors(weights)
    ids = torch.randint(3, 300, (2, 60))
    mask = (torch.arange(60) < torch.tensor([[60], [11]])).long()
    whole = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    torch.testing.assert_close(encoder.encode_ids(ids, mask), whole, atol=1e-5, rtol=1e-4)


def test_a_prompt_has_one_embedding_whatever_stands_beside_it(encoder):
    together = encoder.encode(["a forest", "ab ab ab", ""])
    assert together.shape == (3, 20, 24)
    assert torch.equal(together[0], encoder.encode(["  a\n forest "])[0])
    # The empty prompt has its end token.
    assert together[2, 0].any()
    assert not together[2, 1:].any()


def test_prompts_become_the_ids_of_the_tokenizer(encoder):
    ids = encoder.tokenize("a forest &amp; 森")
    bytes_of_forest = [3 + byte for byte in "森".encode()]
    names = encoder.tokenizer.get_vocab()
    assert ids == [names["▁a"], names["▁forest"], names["▁"], names["&"], names["▁"], *bytes_of_forest, names["</s>"]]
    mask = torch.ones(1, len(ids), dtype=torch.long)
    expected = encoder.encode_ids(torch.tensor([ids]), mask)[0]
    out = encoder.encode(["a forest &amp; 森"])[0]
    assert torch.equal(out[: len(ids)], expected)
    assert not out[len(ids) :].any()


def test_long_prompts_are_cut_and_keep_their_end(encoder):
    with pytest.warns(UserWarning, match="cut to 20 tokens"):
        ids = encoder.tokenize("a " * 40)
    assert len(ids) == 20
    assert ids[-1] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(encoder.tokenize("a " * 19)) == 20


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("  a \n\t b\u00a0 c\u3000", "a b c"),
        ("salt &amp;amp; pepper &lt;3", "salt & pepper <3"),
        # A bare < keeps ftfy off entities: the two rounds after it are what resolves them.
        ("salt &amp;amp; pepper <3", "salt & pepper <3"),
        ("ﬁre ﬂy", "fire fly"),
        ("cafÃ© de flore", "café de flore"),
        ("“quoted”", '"quoted"'),
        ("森の中を歩く кот žluťoučký", "森の中を歩く кот žluťoučký"),
        ("", ""),
    ],
)
def test_cleaning(prompt, expected):
    assert clean(prompt) == expected
    assert clean(expected) == expected


def test_dtype_and_device_are_as_asked(weights):
    half = TextEncoder.from_tensors(weights, dtype=torch.bfloat16)
    out = half.encode_ids(torch.tensor([[5, 1]]), torch.ones(1, 2))
    assert out.dtype == torch.bfloat16
    stored = {name: x.to(torch.bfloat16) for name, x in weights.items()}
    assert {p.dtype for p in TextEncoder.from_tensors(stored).model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in TextEncoder.from_tensors(weights, device="meta").model.parameters()} == {"meta"}


def test_full_size_is_umt5_xxl():
    tensors = {name: torch.empty(shape, device="meta") for name, shape in XXL.shapes().items()}
    encoder = TextEncoder.from_tensors(tensors, device="meta")
    assert len(tensors) == 242
    assert sum(p.numel() for p in encoder.model.parameters()) == 5_680_910_336
    assert encoder.width == 4096


# ---- files of the text encoder


@pytest.mark.parametrize("name", ["t5.pth", "t5.safetensors"])
def test_files_load_with_the_tokenizer_beside_them(weights, tokenizer_folder, encoder, tmp_path, name):
    beside = tmp_path / "google" / "umt5-xxl"
    beside.mkdir(parents=True)
    (beside / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    path = tmp_path / name
    torch.save(weights, path) if name.endswith("pth") else save_file(weights, path)
    loaded = TextEncoder.load(path, text_tokens=20)
    assert torch.equal(loaded.encode(["a forest"]), encoder.encode(["a forest"]))


def test_files_are_mapped_not_copied(weights, tmp_path):
    """What needs no other dtype is the file's own memory; two names of one table are one."""
    torch.save(weights, tmp_path / "t5.pth")
    tensors = read_tensors(tmp_path / "t5.pth")
    model = TextEncoder.from_tensors(tensors).model
    norm = model.encoder.final_layer_norm.weight
    assert norm.data_ptr() == tensors["norm.weight"].data_ptr()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "t5.pth") in maps.read_text()
    assert model.encoder.embed_tokens.weight.data_ptr() == model.shared.weight.data_ptr()


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_folders_of_the_transformers_library_load(weights, tokenizer_folder, encoder, tmp_path, shard):
    folder = tmp_path / "text_encoder"
    TextEncoder.from_tensors(weights).model.save_pretrained(folder, max_shard_size=shard)
    assert (folder / "model.safetensors.index.json").exists() == (shard == "20KB")
    loaded = TextEncoder.load(folder, tokenizer_folder, text_tokens=20)
    assert torch.equal(loaded.encode(["a forest"]), encoder.encode(["a forest"]))


def test_a_folder_of_another_model_is_refused(weights, tokenizer_folder, tmp_path):
    TextEncoder.from_tensors(weights).model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(ValueError, match="describes a t5"):
        TextEncoder.load(tmp_path, tokenizer_folder)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        TextEncoder.load(tmp_path, tokenizer_folder)


def test_every_misfit_is_listed(weights):
    broken = dict(weights)
    broken["blocks.1.attn.kk.weight"] = broken.pop("blocks.1.attn.k.weight")
    broken["norm.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="do not fit a umT5 encoder") as caught:
        TextEncoder.from_tensors(broken)
    text = str(caught.value)
    assert "missing blocks.1.attn.k.weight [40, 24]" in text
    assert "unexpected blocks.1.attn.kk.weight [40, 24]" in text
    assert "norm.weight is [3], expected [24]" in text


@pytest.mark.parametrize("tensors", [{}, {"model.patch_embedding.weight": torch.zeros(1)}])
def test_other_models_are_no_text_encoder(tensors):
    with pytest.raises(ValueError, match="no weights of a umT5 encoder"):
        TextEncoder.from_tensors(tensors)


def test_unreadable_files(tmp_path, weights):
    path = tmp_path / "t5.pth"
    with pytest.raises(ValueError, match="no weights at"):
        read_tensors(path)
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_tensors(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=str(path)):
        read_tensors(path)
    torch.save({"path": Path("x")}, path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_tensors(path)
    torch.save({"a": torch.zeros(1), "step": 3}, path)
    with pytest.raises(ValueError, match="such as 'step'"):
        read_tensors(path)
    (tmp_path / "t5.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "t5.safetensors")


def test_a_missing_tokenizer_says_what_to_get(tmp_path, weights):
    torch.save(weights, tmp_path / "t5.pth")
    with pytest.raises(ValueError, match=r"no tokenizer at .*download tokenizer\.json of google/umt5-xxl"):
        TextEncoder.load(tmp_path / "t5.pth")
    with pytest.raises(ValueError, match="this encoder has no tokenizer"):
        TextEncoder.from_tensors(weights).encode(["a"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no tokenizer\.json, or damaged"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_bad_prompts_and_ids(encoder):
    for prompts in ("a forest", [], [b"a"]):
        with pytest.raises(ValueError, match="expected a list of strings"):
            encoder.encode(prompts)
    ids = torch.tensor([[5, 6, 1]])
    with pytest.raises(ValueError, match="expected integers of one shape"):
        encoder.encode_ids(ids, torch.ones(1, 2))
    with pytest.raises(ValueError, match="the mask has gaps"):
        encoder.encode_ids(ids, torch.tensor([[1, 0, 1]]))
    with pytest.raises(ValueError, match="is the tokenizer google/umt5-xxl's"):
        encoder.encode_ids(ids + 300, torch.ones(1, 3))


@pytest.mark.parametrize(("module", "call"), [("ftfy", "encode"), ("transformers", "build"), ("tokenizers", "read")])
def test_a_missing_package_names_the_extra(monkeypatch, weights, encoder, tokenizer_folder, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    calls = {
        "encode": lambda: encoder.encode(["a"]),
        "build": lambda: TextEncoder.from_tensors(weights),
        "read": lambda: read_tokenizer(tokenizer_folder),
    }
    with pytest.raises(ValueError, match=rf"needs {module}: pip install 'inferix-env\[text\]'"):
        calls[call]()


# ---- embeddings on disk


class Counting:
    """An encoder that counts what it is asked for."""

    def __init__(self, encoder):
        self.encoder, self.made, self.prompts = encoder, 0, []

    def __call__(self):
        self.made += 1
        return Inner(self)


class Inner:
    def __init__(self, counting):
        self.counting = counting

    def encode(self, prompts):
        self.counting.prompts += prompts
        return self.counting.encoder.encode(prompts)


def test_a_full_cache_needs_no_encoder(encoder, tmp_path):
    counting = Counting(encoder)
    cached = CachedText(counting, tmp_path / "texts", identity="tiny", text_tokens=20)
    assert counting.made == 0
    first = cached.encode(["a forest", "ab", " a  forest"])
    assert torch.equal(first, encoder.encode(["a forest", "ab", "a forest"]))
    assert (counting.made, counting.prompts) == (1, ["a forest", "ab"])

    def refuse():
        raise AssertionError("a full cache made an encoder")

    again = CachedText(refuse, tmp_path / "texts", identity="tiny", text_tokens=20)
    assert torch.equal(again.encode(["ab", "a forest"]), first[[1, 0]])
    assert len(list((tmp_path / "texts").iterdir())) == 2


def test_prompts_are_cleaned_once(encoder, tmp_path):
    """What was escaped many times over keeps some of it; cleaned again it would lose that."""
    prompt = "b < a &amp;amp;amp; c"
    assert clean(clean(prompt)) != clean(prompt)
    cached = CachedText(encoder, tmp_path, identity="tiny", text_tokens=20)
    assert torch.equal(cached.encode([prompt]), encoder.encode([prompt]))


def test_dtype_and_the_empty_rows_survive_the_disk(weights, tokenizer_folder, tmp_path):
    half = TextEncoder.from_tensors(weights, tokenizer_folder, text_tokens=20, dtype=torch.bfloat16)
    cached = CachedText(half, tmp_path, identity="half", text_tokens=20)
    out = cached.encode(["a forest"])
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, half.encode(["a forest"]))
    # Only the rows of tokens are stored.
    assert load_file(cached.path("a forest"))["rows"].shape == (3, 24)


def test_encoders_of_other_identities_have_files_of_their_own(encoder, tmp_path):
    paths = {CachedText(encoder, tmp_path, identity=x, text_tokens=n).path("a") for x in "ab" for n in (19, 20)}
    assert len(paths) == 4
    with pytest.raises(ValueError, match="identity is empty"):
        CachedText(encoder, tmp_path, identity="")


def test_a_dropped_encoder_is_made_anew_or_missed(encoder, tmp_path):
    counting = Counting(encoder)
    cached = CachedText(counting, tmp_path, identity="tiny", text_tokens=20)
    cached.encode(["a"])
    cached.drop()
    cached.encode(["a"])
    assert counting.made == 1
    cached.encode(["b"])
    assert counting.made == 2
    given = CachedText(encoder, tmp_path, identity="tiny", text_tokens=20)
    given.drop()
    given.encode(["a"])
    with pytest.raises(ValueError, match="the encoder was dropped"):
        given.encode(["c"])


def test_a_damaged_file_is_named(encoder, tmp_path):
    cached = CachedText(encoder, tmp_path, identity="tiny", text_tokens=20)
    cached.encode(["a"])
    path = cached.path("a")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    other = cached.path("b")
    cached.encode(["b"])
    for blob, reason in ((whole[:-4], ""), (b"", ""), (flipped, "checksum"), (other.read_bytes(), "prompt is 'b'")):
        path.write_bytes(blob)
        with pytest.raises(ValueError, match=rf"{path} is damaged: .*{reason}.*Delete"):
            cached.encode(["a"])
    path.unlink()
    assert torch.equal(cached.encode(["a"]), encoder.encode(["a"]))
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


def test_an_encoder_of_other_length_is_refused(encoder, tmp_path):
    cached = CachedText(encoder, tmp_path, identity="tiny", text_tokens=512)
    with pytest.raises(ValueError, match="returns 20 rows, the cache is of 512"):
        cached.encode(["a"])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(encoder, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    cached = CachedText(encoder, tmp_path, identity="tiny", text_tokens=20)
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        cached.encode(["a"])
    assert not list(tmp_path.iterdir())


# ---- the image tower


def test_clip_equals_the_published_tower():
    case, t, weights = oracle("clip_vision")
    tolerance = {key: case["tolerance"][key] for key in ("atol", "rtol")}
    vision = ClipVision.from_tensors(weights, heads=case["model"]["num_heads"])
    images = t["in.image"][:, :, 0]
    assert vision.pixels == case["model"]["image_size"]
    torch.testing.assert_close(vision.prepare(images), t["out.pixel_values"], **tolerance)
    torch.testing.assert_close(vision.encode(images), t["out.clip_fea"], **tolerance)


def test_clip_sizes_are_read_from_shapes():
    weights = randoms(CLIP.shapes(), "visual.")
    vision = ClipVision.from_tensors(weights)
    assert (vision.pixels, vision.model.config.num_attention_heads) == (12, 2)
    out = vision.encode(torch.rand(2, 3, 20, 36) * 2 - 1)
    assert out.shape == (2, 10, 160)
    # Neither the last layer nor the final norm nor the projection has a say; the one before it has.
    for name, matters in (("transformer.3.", False), ("post_norm", False), ("head", False), ("transformer.2.", True)):
        torch.manual_seed(1)
        images = torch.rand(2, 3, 20, 36) * 2 - 1
        changed = {k: x + 1 if k.startswith(f"visual.{name}") else x for k, x in weights.items()}
        same = torch.equal(ClipVision.from_tensors(changed).encode(images), vision.encode(images))
        assert same != matters, name


def test_the_text_tower_in_the_file_is_not_looked_at(tmp_path):
    weights = randoms(CLIP.shapes(), "visual.")
    path = tmp_path / "clip.pth"
    torch.save(weights | {"textual.model.embeddings.weight": torch.zeros(9, 9), "log_scale": torch.zeros(())}, path)
    vision = ClipVision.load(path, dtype=torch.bfloat16)
    images = torch.zeros(1, 3, 12, 12)
    assert vision.encode(images).dtype == torch.bfloat16
    assert torch.equal(ClipVision.load(path).encode(images), ClipVision.from_tensors(weights).encode(images))


def test_clip_errors():
    weights = randoms(CLIP.shapes(), "visual.")
    with pytest.raises(ValueError, match="no shape tells, give heads="):
        ClipVision.from_tensors(randoms(replace(CLIP, width=32).shapes(), "visual."))
    with pytest.raises(ValueError, match="3 heads for a width of 160"):
        ClipVision.from_tensors(weights, heads=3)
    with pytest.raises(ValueError, match="no weights of a CLIP image tower"):
        ClipVision.from_tensors({name.removeprefix("visual."): x for name, x in weights.items()})
    missing = {name: x for name, x in weights.items() if "transformer.1.attn" not in name}
    with pytest.raises(ValueError, match=r"missing transformer\.1\.attn\.to_qkv\.weight \[480, 160\]"):
        ClipVision.from_tensors(missing)
    with pytest.raises(ValueError, match="1 more than a square"):
        ClipVision.from_tensors(weights | {"visual.pos_embedding": torch.zeros(1, 9, 160)})
    vision = ClipVision.from_tensors(weights)
    for images in (torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, 3), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="expected floats"):
            vision.encode(images)


def test_full_size_is_vit_h():
    tensors = {f"visual.{name}": torch.empty(shape, device="meta") for name, shape in VIT_H.shapes().items()}
    vision = ClipVision.from_tensors(tensors, device="meta")
    # 632 M in the file; without the last layer and the projection 611 M.
    assert sum(x.numel() for x in tensors.values()) == 632_076_800
    assert sum(p.numel() for p in vision.model.parameters()) == 611_088_640
    assert vision.model.config.num_attention_heads == 16
    assert vision.pixels == 224


# ---- pictures


def test_fitting_cuts_the_middle():
    frame = np.zeros((10, 40, 3), np.uint8)
    frame[:, 10:30] = (255, 0, 51)
    out = fit_image(frame, 5, 10)
    assert out.shape == (3, 5, 10)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[:, 2, 3], torch.tensor([1.0, -1.0, -0.6]))
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    tall = fit_image(frame.transpose(1, 0, 2), 10, 5)
    assert torch.equal(tall, out.transpose(1, 2))


def test_fitting_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    out = fit_image(stripes, 8, 8)
    assert out.abs().max() < 0.05
    exact = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    same = (fit_image(exact, 16, 16) + 1) * 127.5
    assert torch.equal(same.round().byte(), torch.from_numpy(exact).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "a picture of float32"),
        (np.zeros((4, 4), np.uint8), r"shape \[4, 4\]"),
        (np.zeros((3, 4, 4), np.uint8), r"shape \[3, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]"),
        ([[1, 2, 3]], "a picture of list"),
        (np.zeros((1, 400, 3), np.uint8), "nothing of the shape"),
    ],
)
def test_fitting_refuses_other_arrays(frame, message):
    with pytest.raises(ValueError, match=message):
        fit_image(frame, 400, 1)
    with pytest.raises(ValueError, match="at least one pixel"):
        fit_image(frame, 0, 4)


def test_pictures_of_every_mode_come_as_rgb(tmp_path):
    solid = Image.new("RGBA", (4, 2), (200, 100, 50, 255))
    solid.putpixel((0, 0), (200, 100, 50, 0))
    for mode in ("RGBA", "LA", "L", "P", "1", "RGB"):
        solid.convert(mode).save(tmp_path / f"{mode}.png")
        image = read_image(tmp_path / f"{mode}.png")
        assert (image.mode, image.size) == ("RGB", (4, 2))
    assert read_image(tmp_path / "RGBA.png").getpixel((0, 0)) == (0, 0, 0)
    assert read_image(tmp_path / "RGBA.png").getpixel((1, 1)) == (200, 100, 50)
    grey = np.asarray(read_image(tmp_path / "L.png"))
    assert (grey == grey[..., :1]).all()
    with pytest.raises(ValueError, match="more than 8 bits"):
        fit_image(Image.new("I;16", (4, 4)), 4, 4)


def test_pictures_stand_as_the_camera_held_them(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (4, 8)


def test_unreadable_pictures(tmp_path):
    with pytest.raises(ValueError, match="no picture at"):
        read_image(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="is no picture"):
        read_image(tmp_path / "text.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1500])
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a picture"):
            read_image(tmp_path / name)
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png.*more than 8 bits"):
        read_image(tmp_path / "deep.png")
