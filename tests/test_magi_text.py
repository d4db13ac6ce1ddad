"""MAGI-1's texts: special tokens and null text as published, the caption cleaner, and the T5 encoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.conditioners.captions import CLEANERS, clean_caption, tidy, without_markup
from engine.conditioners.magi_text import MagiText, SpecialTokens, filled
from engine.conditioners.t5 import END, T5Encoder
from tests.magi_cases import case, names

# The published switches by ours.
PUBLISHED = {
    "STATIC_FIRST_FRAMES_TOKEN": "static",
    "DYNAMIC_FIRST_FRAMES_TOKEN": "dynamic",
    "BORDERNESS_TOKEN": "borders",
    "HQ_TOKEN": "hq",
    "THREE_D_MODEL_TOKEN": "3d",
    "TWO_D_ANIME_TOKEN": "anime",
    "DURATION_TOKEN": "duration",
}


# Special tokens and null text.


def texts_of(c, variant):
    special = SpecialTokens.of({name.split(".")[1]: x for name, x in c["in"].items() if name.startswith("special.")})
    switches = tuple(PUBLISHED[key] for key in variant["special_keys"])
    return MagiText(c["in"]["null_caption_embedding"], special, switches, bool(variant["negative_keys"]))


def variants():
    return [(name, v["name"]) for name in names("text_assembly") for v in case(name).info["variants"]]


@pytest.mark.parametrize(("name", "variant"), variants())
def test_assembly(name, variant):
    """The files keep padding too: 800 rows and a mask. Here a text is the rows that the mask leaves."""
    c = case(name)
    v = next(v for v in c.info["variants"] if v["name"] == variant)
    texts, keep = texts_of(c, v), c.info["keep"]
    caption = c["in"]["caption_embs"][0, 0]
    y, tail, total, mask = (c["out"][f"{variant}.{part}"] for part in ("y_head", "y_tail", "y_sum", "mask"))
    prefix = v["prefix_latents"] // (v["latent_size"][2] // v["chunk_num"])  # whole chunks that were given
    for i in range(v["chunk_num"]):
        left = v["chunk_num"] - i
        for side, got in enumerate((texts.prompt(caption[: v["caption_len"]], left), texts.nothing())):
            length = int(mask[side, i].sum())
            if side == 0 and i < prefix:
                assert length == 0  # what was given reads no prompt
                continue
            assert len(got) == length
            assert mask[side, i][:length].all()
            rows = min(length, keep)
            torch.testing.assert_close(got[:rows], y[side, i, :rows], rtol=0, atol=c.info["tolerance"]["atol"])
        if v["caption_len"] and i >= prefix:
            padded = texts.prompt(caption, left)
            torch.testing.assert_close(padded[:keep], y[0, i], rtol=0, atol=1e-6)
            torch.testing.assert_close(padded[-8:], tail[0, i], rtol=0, atol=1e-6)
            torch.testing.assert_close(padded.double().sum(), total[0, i])


def test_tokens_are_rounded_through_half_precision():
    arrays = {"caption_token": np.full((1, 4), 0.1), "logo_token": np.zeros((1, 4)), "other_tokens": np.ones((100, 4))}
    tokens = SpecialTokens.of(arrays)
    assert tokens.row("caption")[0, 0] == np.float32(np.float16(0.1))
    assert tokens.row("caption").dtype == torch.float32


def tokens_of(width=4):
    table = np.arange(100)[:, None] + np.zeros((1, width))
    return SpecialTokens.of(
        {"caption_token": np.full((1, width), 200.0), "logo_token": np.full((1, width), 201.0), "other_tokens": table}
    )


def test_a_video_without_an_end_has_the_longest_duration_for_ever():
    texts = MagiText(torch.zeros(800, 4), tokens_of())
    caption = torch.full((3, 4), 0.5)
    assert texts.prompt(caption)[:, 0].tolist() == [14.0, 1.0, 0.5, 0.5, 0.5]
    assert [rows[0, 0].item() - 6 for rows in texts.chunks(caption, 10)] == [8, 8, 8, 7, 6, 5, 4, 3, 2, 1]
    assert texts.endings == 8
    assert MagiText(torch.zeros(800, 4)).endings == 0


def test_without_the_file_prompts_stand_alone():
    texts = MagiText(torch.zeros(800, 4))
    caption = torch.ones(900, 4)
    assert torch.equal(texts.prompt(caption[:3], 1), caption[:3])
    assert texts.prompt(caption).shape == (800, 4)
    assert texts.nothing().shape == (50, 4)


def test_no_prompt_reads_the_null_text():
    texts = MagiText(torch.randn(800, 4), tokens_of())
    assert torch.equal(texts.prompt(torch.zeros(0, 4), 3), texts.null[:50])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"switches": ("hd",)}, "special token 'hd': expected any of static, dynamic"),
        ({"tokens": None, "negative": True}, "need the special tokens' file"),
        ({"tokens": tokens_of(5)}, "5 wide, this model's texts 4"),
    ],
)
def test_texts_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        MagiText(**{"null": torch.zeros(800, 4), "tokens": tokens_of(), **change})


def test_the_tokens_file(tmp_path):
    path = tmp_path / "special_tokens.npz"
    arrays = {"caption_token": np.ones((1, 4)), "logo_token": np.ones((1, 4)), "other_tokens": np.ones((100, 4))}
    np.savez(path, **arrays)
    assert SpecialTokens.load(path).durations.shape == (8, 4)
    np.savez(path, **{**arrays, "other_tokens": np.ones((9, 4))})
    with pytest.raises(ValueError, match=r"other_tokens is \(9, 4\), expected at least 17 rows"):
        SpecialTokens.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cannot be read as special_tokens\.npz"):
        SpecialTokens.load(path)


def test_padding_is_taken_off():
    rows = torch.zeros(6, 3)
    rows[0, 1] = rows[3, 2] = 1
    assert len(filled(rows)) == 4
    assert filled(torch.zeros(6, 3)).shape == (0, 3)


# Captions.


# Prompts and what the published cleaner makes of them.
PROMPTS = {
    "A cat on a windowsill, looking at the rain.": "a cat on a windowsill, looking at the rain.",
    "  A  Dog\trunning ; it's 'fast'!  ": "a dog running ; it's 'fast'!",
    "see https://example.com/a?b=1 and www.site.org/page now": "see ?b=1 and now",
    "by @someone #12 #123456 and 1234567 things": "by and things",
    "a well-lit room": "a well-lit room",
    "this-is-my-cute-cat_photo": "this is my cute cat photo",
    "IMG_2034.jpg of a beach, 800x600, page 12, free shipping": "of a beach, ,",
    'she said ""hello"" ... and left . Then': 'she said "hello" and left then',
    "一只猫 a cat 坐在窗边": "a cat",
    "«quoted» “text” — with dashes – and ‘single’": 'quoted" "text" - with dashes - and \'single',
    "jc6640 jc6640vc 6640vc231 j2d1a2a34": "",
    "192.168.0.1 at 12:30 ": "at 12:30",
    "“Ein Mädchen läuft”": "ein mädchen läuft",
    "a 3d render+of%20a ship : old": "a 3d render of a ship: old",
    "'a quoted caption'": "a quoted caption",
    ".hidden": "",
    "ends with a dash-": "ends with a dash",
    "download free click for more worldwide free shipping": "",
    "Tom &amp; Jerry &quot;again&quot; &lt;b&gt;": 'tom jerry "again"',
    "100×200 or 3x4 or 5х6": "or or",
    "": "",
}


@pytest.mark.parametrize(("prompt", "cleaned"), PROMPTS.items())
def test_published_cleaner(prompt, cleaned):
    pytest.importorskip("ftfy")
    assert clean_caption(prompt) == cleaned


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_cleaner_against_another_implementation(prompt, monkeypatch):
    """diffusers has the same published cleaner; of its HTML parser only the text is asked for."""
    pytest.importorskip("ftfy")
    pixart = pytest.importorskip("diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha")
    text_of = type("Soup", (), {"__init__": lambda self, x, features: setattr(self, "text", without_markup(x))})
    monkeypatch.setattr(pixart, "BeautifulSoup", text_of, raising=False)
    pipeline = pixart.PixArtAlphaPipeline
    once = pipeline._clean_caption(pipeline, prompt)
    assert clean_caption(prompt) == pipeline._clean_caption(pipeline, once)


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("A Big <b>RED</b> car", "a big red car"),
        ("a <script>var x = 1;</script>cat <!-- none --> here", "a cat here"),
        ("Tom &amp; Jerry", "tom jerry"),
        ("red &lt; blue", "red < blue"),
        ("一只猫", ""),
        ("猫 sits", "sits"),
    ],
)
def test_cleaned(prompt, cleaned):
    pytest.importorskip("ftfy")
    assert clean_caption(prompt) == cleaned


@pytest.mark.parametrize(
    "prompt", ["一只猫坐在窗边，看雨", "Ein Mädchen läuft über die Brücke – schnell!", "кот в окне"]
)
def test_prompts_of_other_languages_stay_whole(prompt):
    pytest.importorskip("ftfy")
    assert tidy(prompt).casefold().replace("，", ",") == prompt.casefold().replace("，", ",")
    assert set(CLEANERS) == {"published", "any-language"}


# The encoder.


WORDS = ["a", "cat", "sits", "on", "the", "window", "and", "looks", "at", "rain", "dog", "runs", "over", "hill", "ship"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A T5 v1.1 encoder in small, as it was published: two shards of torch.save, an index, a sentencepiece model."""
    transformers, sentencepiece = pytest.importorskip("transformers"), pytest.importorskip("sentencepiece")
    place = tmp_path_factory.mktemp("t5") / "t5-v1_1-xxl"
    place.mkdir()
    text = place / "words.txt"
    text.write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(place / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=END,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=128,
        d_model=24,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    model = transformers.T5EncoderModel(config)
    for x in model.parameters():
        x.data = torch.randn_like(x) * 0.5
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    order = sorted(weights)
    for i, file in enumerate(files):
        torch.save({name: weights[name] for name in order[i::2]}, place / file)
    index = {"weight_map": {name: files[i % 2] for i, name in enumerate(order)}}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (place / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "t5"}))
    return place, weights


def test_t5(folder):
    """Against the library's own model and its attention mask, at the published length."""
    import transformers

    place, weights = folder
    encoder = T5Encoder.load(place.parent)  # MAGI-1's configs name the folder above
    prompts = ["A cat sits on the window", "rain"]
    rows = encoder.encode(prompts)
    assert rows.shape == (2, 800, 24)
    plain = transformers.T5EncoderModel(transformers.T5Config.from_pretrained(place)).eval()
    plain.load_state_dict(weights)
    ids = torch.zeros(2, 800, dtype=torch.int64)
    lengths = [len(encoder.ids(prompt)) for prompt in prompts]
    for n, prompt in enumerate(prompts):
        ids[n, : lengths[n]] = torch.tensor(encoder.ids(prompt))
    mask = (torch.arange(800) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        want = plain(input_ids=ids, attention_mask=mask).last_hidden_state
    for n, length in enumerate(lengths):
        torch.testing.assert_close(rows[n, :length], want[n, :length], rtol=0, atol=1e-4)
        assert not rows[n, length:].any()
        assert len(filled(rows[n])) == length


def test_t5_ids(folder):
    encoder = T5Encoder.load(folder[0], text_tokens=6)
    assert encoder.ids("cat")[-1] == END
    assert encoder.ids("A CAT") == encoder.ids("a cat")
    with pytest.warns(UserWarning, match="cut to 6 tokens"):
        assert len(encoder.ids("a cat sits on the window and looks at the rain")) == 6
    intact = T5Encoder.load(folder[0], clean=tidy)
    assert intact.ids("A CAT") != intact.ids("a cat")


def test_t5_of_safetensors_and_of_a_whole_model(folder, tmp_path):
    place, weights = folder
    whole = {**weights, "decoder.block.0.layer.0.layer_norm.weight": torch.ones(24), "lm_head.weight": torch.ones(2, 2)}
    whole.pop("encoder.embed_tokens.weight")
    save_file(whole, tmp_path / "model.safetensors")
    for name in ("config.json", "spiece.model"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    one, other = (T5Encoder.load(f).encode(["a cat"]) for f in (place, tmp_path))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "umt5"}, "describes a umt5 with gated-gelu: expected t5"),
        ({"d_ff": 40}, r"is \[32, 24\], expected \[40, 24\]"),
        ({"num_layers": 3}, "missing encoder.block.2"),
        ({"d_kv": None}, "lacks d_kv"),
    ],
)
def test_folders_that_are_none(folder, tmp_path, change, message):
    for file in folder[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = {**json.loads((tmp_path / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps({name: x for name, x in config.items() if x is not None}))
    with pytest.raises(ValueError, match=message):
        T5Encoder.load(tmp_path)


def test_files_that_are_missing_or_damaged(folder, tmp_path):
    for name, message in (("spiece.model", "no tokenizer"), ("config.json", "cannot be read as JSON")):
        place = tmp_path / name
        place.mkdir()
        for file in folder[0].iterdir():
            if file.name != name:
                (place / file.name).write_bytes(file.read_bytes())
        with pytest.raises(ValueError, match=message):
            T5Encoder.load(place)
    shard = tmp_path / "spiece.model" / "pytorch_model-00002-of-00002.bin"
    shard.with_name("spiece.model").write_bytes((folder[0] / "spiece.model").read_bytes())
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"00002-of-00002\.bin"):
        T5Encoder.load(shard.parent)
    for file in shard.parent.glob("pytorch_model*"):
        file.unlink()
    with pytest.raises(ValueError, match="no weights in"):
        T5Encoder.load(shard.parent)
