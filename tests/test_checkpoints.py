"""Published checkpoints in small: every layout read back exactly, sizes, adapters, an error each way to be wrong."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

from engine.checkpoints import (
    Tensors,
    apply_lora,
    fill,
    in_memory,
    linear_patches,
    merged,
    open_denoiser,
    open_tensors,
    original_names,
    read_lora,
    unused_norms,
    wan_spec_of,
)
from engine.checkpoints.files import plain_name
from engine.checkpoints.names import layout_of
from engine.checkpoints.tensors import Entry
from engine.models.wan import WanDiT
from tests import published as p

META = torch.device("meta")
TINY = [p.TINY_T2V, p.TINY_I2V, p.TINY_ACTIONS]
ORACLES = Path(__file__).parent / "parity" / "wan"


@pytest.fixture(scope="module")
def tensors():
    return p.tiny_wan_tensors(p.TINY_T2V)


def same(found: Tensors, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found.shapes[name] == tuple(tensor.shape)
        assert found.dtypes[name] == tensor.dtype
        assert torch.equal(found[name], tensor), name


def module_of(shapes: dict[str, tuple]) -> nn.Module:
    """A module on the meta device with parameters of these names; matrices are linears."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        parent = root
        for part in path[:-1]:
            parent = getattr(parent, part, None) or parent.register_module(part, nn.Module()) or getattr(parent, part)
        place = getattr(parent, path[-1], None)
        if place is None and last == "weight" and len(shape) == 2:
            bias = f"{'.'.join(path)}.bias" in shapes
            parent.register_module(path[-1], nn.Linear(shape[1], shape[0], bias=bias, device=META))
        elif not isinstance(place, nn.Linear):
            if place is None:
                parent.register_module(path[-1], nn.Module())
            getattr(parent, path[-1]).register_parameter(last, nn.Parameter(torch.empty(shape, device=META)))
    return root


# Sizes


@pytest.mark.parametrize(
    ("spec", "count", "parameters"),
    [
        (p.T2V_1_3B, 825, 1_418_996_800),
        (p.T2V_14B, 1095, 14_288_491_584),
        (p.I2V_14B, 1303, 16_394_878_784),
        (p.GTA, 1114, 1_619_238_464),
        (p.UNIVERSAL, 1114, 1_619_242_304),
        (p.TEMPLERUN, 964, 1_508_715_584),
    ],
)
def test_published_sizes_are_read_from_shapes(spec, count, parameters):
    shapes = p.names_and_shapes(spec)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (count, parameters)
    assert wan_spec_of(shapes) == spec


@pytest.mark.parametrize("spec", TINY)
def test_small_sizes_are_read_whatever_the_patch_embedding_is(spec):
    found = in_memory(p.tiny_wan_tensors(spec))
    for shapes in (found.shapes, linear_patches(found).shapes):
        assert wan_spec_of(shapes, head_width=40, text_tokens=12) == spec


@pytest.mark.parametrize(
    "name", ["mg2_forward", "mg2_rollout_templerun", "dit_forward_bidirectional_i2v", "sf_rollout"]
)
def test_names_and_sizes_are_those_of_recorded_models(name):
    recorded = load_file(ORACLES / f"{name}.safetensors")
    weights = {k.removeprefix("weights."): t for k, t in recorded.items() if k.startswith("weights.")}
    shapes = in_memory(weights).renamed(plain_name).shapes
    spec = wan_spec_of(shapes, head_width=shapes["blocks.0.self_attn.q.bias"][0] // 2, text_tokens=12)
    assert shapes == p.names_and_shapes(spec)


def test_sizes_that_no_wan_has_are_refused():
    shapes = p.names_and_shapes(p.TINY_I2V)
    with pytest.raises(ValueError, match="width 80 is not a multiple of head_width 128"):
        wan_spec_of(shapes)
    without = {name: shape for name, shape in shapes.items() if "k_img" not in name}
    with pytest.raises(ValueError, match=r"lacks cross_attn\.k_img"):
        wan_spec_of(without, 40)
    without = {name: shape for name, shape in p.names_and_shapes(p.TINY_T2V).items() if "text" not in name}
    with pytest.raises(ValueError, match="neither text_embedding nor img_emb"):
        wan_spec_of(without, 40)
    without = {name: s for name, s in p.names_and_shapes(p.TINY_ACTIONS).items() if "action_model" not in name}
    with pytest.raises(ValueError, match="no action_model"):
        wan_spec_of(without, 40)
    with pytest.raises(ValueError, match=r"no patch_embedding\.weight"):
        wan_spec_of({"conv.weight": (3, 3)})


# Layouts


def test_self_forcing_prefers_the_average_and_loses_what_fsdp_left(tmp_path, tensors):
    average = p.tiny_wan_tensors(p.TINY_T2V, seed=1)
    path = p.write_self_forcing(tmp_path, tensors, average)
    same(open_tensors(path), average)
    same(open_tensors(tmp_path), average)
    same(open_tensors(path, prefer="generator"), tensors)
    same(open_tensors(path, prefer=("absent", "generator")), tensors)
    with pytest.raises(ValueError, match=r"no 'critic'; there is \['generator', 'generator_ema'\]"):
        open_tensors(path, prefer="critic")


def test_causvid_krea_and_longlive_are_read(tmp_path, tensors):
    p.write_causvid(tmp_path / "causvid", tensors)
    p.write_krea(tmp_path / "krea", tensors)
    p.write_longlive(tmp_path / "longlive", tensors, p.tiny_lora(tensors))
    for name in ("causvid", "krea", "longlive", "longlive/models"):
        same(open_tensors(tmp_path / name), tensors)
    p.write_torch(tmp_path / "model.pt", {"model": tensors, "optimizer": {"lr": 1.0}})
    p.write_torch(tmp_path / "flat.pt", p.prefixed(tensors, "module.model."))
    for name in ("model.pt", "flat.pt"):
        same(open_tensors(tmp_path / name), tensors)


@pytest.mark.parametrize("spec", TINY)
def test_diffusers_folders_are_read_under_the_original_names(tmp_path, spec):
    tensors = p.tiny_wan_tensors(spec)
    folder = p.write_diffusers(tmp_path, tensors)
    index = next(folder.glob("*.json"))
    for path in (tmp_path, folder, index):
        same(original_names(open_tensors(path)), tensors)


@pytest.mark.slow  # diffusers takes long to import
@pytest.mark.parametrize("spec", [p.TINY_T2V, p.TINY_I2V])
def test_names_and_shapes_are_those_of_the_real_diffusers_class(spec):
    diffusers = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    image = spec.image_width if spec.image_tokens else None
    sizes = {"num_attention_heads": spec.heads, "attention_head_dim": spec.head_width, "ffn_dim": spec.ffn}
    sizes |= {"num_layers": spec.layers, "freq_dim": spec.frequencies, "text_dim": spec.text_width}
    sizes |= {"added_kv_proj_dim": spec.width if image else None, "image_dim": image}
    model = diffusers.WanTransformer3DModel(**sizes, in_channels=spec.in_channels, out_channels=spec.out_channels)
    assert original_names(in_memory(model.state_dict())).shapes == p.names_and_shapes(spec)


def test_matrix_game_is_read_and_of_several_modes_one_has_to_be_chosen(tmp_path):
    tensors = p.tiny_wan_tensors(p.TINY_ACTIONS)
    universal = p.write_matrix_game(tmp_path, tensors)
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"unread")
    same(original_names(open_tensors(tmp_path)), tensors)
    gta = p.write_matrix_game(tmp_path, tensors, "gta_distilled_model/gta_keyboard2dim")
    with pytest.raises(ValueError, match="several weights; give the path") as caught:
        open_tensors(tmp_path)
    assert str(universal) in str(caught.value)
    assert str(gta) in str(caught.value)
    same(open_tensors(gta.parent), tensors)


def test_a_name_held_twice_is_refused(tmp_path, tensors):
    p.write_torch(tmp_path / "x.pt", {**tensors, **p.prefixed(tensors)})
    with pytest.raises(ValueError, match="two sets of weights"):
        open_tensors(tmp_path / "x.pt")
    norms = in_memory({p.diffusers_name(n): t for n, t in tensors.items()} | {"blocks.0.norm3.weight": torch.ones(80)})
    with pytest.raises(ValueError, match=r"are both blocks\.0\.norm3\.weight"):
        original_names(norms)


def test_an_unknown_layout_shows_what_there_is_and_what_was_expected(tensors):
    with pytest.raises(ValueError, match=r"begins with unet\.in\.weight.*expected one of.*self_attn\.q"):
        layout_of(["unet.in.weight", "unet.out.weight"], "x.pt")
    with pytest.raises(ValueError, match="both layouts"):
        layout_of([*tensors, *map(p.diffusers_name, tensors)], "x.pt")


# Folders and shards


def test_a_sharded_model_of_any_name_is_one_model(tmp_path, tensors):
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    places = {}
    for i, half in enumerate(halves):
        shard = p.write_safetensors(tmp_path / f"model-0000{i + 1}-of-00002.safetensors", half)
        places |= dict.fromkeys(half, shard.name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    same(open_tensors(tmp_path), tensors)


def test_a_folder_with_one_weights_file_needs_no_known_name(tmp_path, tensors):
    p.write_safetensors(tmp_path / "mine.safetensors", tensors)
    (tmp_path / "config.json").write_text("{}")
    same(open_tensors(tmp_path), tensors)
    p.write_safetensors(tmp_path / "other.safetensors", tensors)
    with pytest.raises(ValueError, match=r"(?s)several weights.*mine\.safetensors.*other\.safetensors"):
        open_tensors(tmp_path)
    same(open_tensors(tmp_path, known=("models/other.safetensors",)), tensors)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no weights in"):
        open_tensors(tmp_path / "empty")


FIRST = "diffusion_pytorch_model-00001-of-00003.safetensors"


def spoil_index(folder: Path, change) -> Path:
    index = next(folder.glob("*.json"))
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    return folder


def test_shards_have_to_agree_with_their_index(tmp_path, tensors):
    folder = p.write_diffusers(tmp_path, tensors, shards=3)
    with pytest.raises(ValueError, match=r"proj_out\.bias, which .* places in no shard"):
        open_tensors(spoil_index(folder, lambda places: places.pop("proj_out.bias")))
    second = next(folder.glob("*-00002-of-*"))
    p.write_safetensors(second, {**load_file(second), "proj_out.bias": torch.ones(64)})
    held = r"00002-of-00003.safetensors holds proj_out\.bias, which .* places in .*0000[13]"
    with pytest.raises(ValueError, match=held):
        open_tensors(spoil_index(folder, lambda places: places.update({"proj_out.bias": FIRST})))
    p.write_diffusers(tmp_path, tensors, shards=3)
    with pytest.raises(ValueError, match=r"places x in .*00001-of-00003.*does not hold it"):
        open_tensors(spoil_index(folder, lambda places: places.update(x=FIRST)))
    with pytest.raises(ValueError, match=r"the shard '\.\./x\.safetensors'"):
        open_tensors(spoil_index(folder, lambda places: places.update(x="../x.safetensors")))
    p.write_diffusers(tmp_path, tensors, shards=3)
    (folder / FIRST).unlink()
    with pytest.raises(ValueError, match=f"names the shard {FIRST}, which is not beside it"):
        open_tensors(folder)
    index = next(folder.glob("*.json"))
    index.write_text("<html>")
    with pytest.raises(ValueError, match="no index of safetensors shards"):
        open_tensors(index)


# Files that are not what they should be


class Foreign:
    """Something that no weights file should hold."""


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.safetensors", b"", "is empty: download it again"),
        ("a.pt", b"", "is empty: download it again"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.safetensors", b"\n<!DOCTYPE html><html></html>", "is a web page"),
        ("a.pt", b"<html><body>404</body></html>", "is a web page"),
        ("a.pt", b"Entry not found", "neither safetensors nor a file of torch.save"),
        ("a.safetensors", b"GGUF" + bytes(100), "neither safetensors nor"),
        ("a.safetensors", b"\x10\0\0\0\0\0\0\0{nothing like json", "cut short or no safetensors"),
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}", "holds no tensors"),
        ("a.pt", b"PK\x03\x04" + bytes(100), "cut short or was not written by torch.save"),
        ("a.pt", b"\x80\x02K\x05.", "pickle of an old format.*save_file"),
    ],
)
def test_what_is_no_weights_is_called_what_it_is(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        open_tensors(tmp_path / name)


def test_truncated_files_are_refused_before_anything_is_read(tmp_path, tensors):
    for path in (p.write_causvid(tmp_path, tensors), p.write_krea(tmp_path, tensors)):
        for keep in (0.5, 0.999):
            cut(path, keep)
            with pytest.raises(ValueError, match="cut short"):
                open_tensors(path)


def test_pickles_that_need_more_than_tensors_are_refused(tmp_path):
    path = p.write_torch(tmp_path / "x.pt", {"generator": {"a": torch.ones(1)}, "config": Foreign()})
    with pytest.raises(ValueError, match=r"holds more than tensors.*Foreign.*if you trust who made it"):
        open_tensors(path)
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="old format"):
        open_tensors(path)


def test_dicts_without_weights_are_refused(tmp_path):
    for data, says in (
        ([torch.ones(1)], "holds a list"),
        ({}, "its weights, if any, lie flat"),
        ({"state_dict": {"a": torch.ones(1)}}, r"there is \['state_dict'\]: choose with prefer="),
        ({"generator": {}}, "it is empty"),
        ({"generator": {"a": torch.ones(1), "step": 3}}, "'step' is none"),
    ):
        with pytest.raises(ValueError, match=says):
            open_tensors(p.write_torch(tmp_path / "x.pt", data))


def test_a_suffix_that_contradicts_the_content_is_refused(tmp_path, tensors):
    path = p.write_krea(tmp_path, tensors)
    with pytest.raises(ValueError, match=r"holds safetensors data under the suffix '\.pt': rename it"):
        open_tensors(path.rename(tmp_path / "x.pt"))
    path = p.write_causvid(tmp_path, tensors)
    with pytest.raises(ValueError, match="holds torch data"):
        open_tensors(path.rename(tmp_path / "x.safetensors"))
    path = p.write_krea(tmp_path, tensors)
    with pytest.raises(ValueError, match="one model, leave prefer= out"):
        open_tensors(path, prefer="generator")


# The hub


def cached_repo(root: Path, repo: str, write) -> Path:
    """A repository in a hub cache, as a finished download leaves it."""
    home = root / f"models--{repo.replace('/', '--')}"
    write(home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    return home


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty hub cache and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_hub_ids_are_read_from_the_cache_without_a_network(offline, tensors):
    cached_repo(offline, "gdhe17/Self-Forcing", lambda folder: p.write_self_forcing(folder, tensors))
    cached_repo(offline, "org/pipeline", lambda folder: p.write_diffusers(folder, tensors))
    file = "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt"
    for name in (
        "gdhe17/Self-Forcing",
        file,
        f"hf://{file}",
        "gdhe17/Self-Forcing@main",
        "gdhe17/Self-Forcing/checkpoints",
    ):
        same(open_tensors(name), tensors)
    for name in ("org/pipeline", "hf://org/pipeline/transformer"):
        same(original_names(open_tensors(name)), tensors)
    cached = offline / "models--org--pipeline" / "snapshots" / ("0" * 40) / "transformer"
    next(cached.glob("*-00002-*")).unlink()
    with pytest.raises(ValueError, match=r"names the shard .*00002"):
        open_tensors("org/pipeline")


@pytest.mark.parametrize("name", ["org/name", "org/name/models/x.pt", "hf://org/name", "org/name@v1/transformer"])
def test_what_is_neither_here_nor_cached_says_what_to_download(offline, name):
    with pytest.raises(ValueError, match=r"run `hf download org/name.*--local-dir FOLDER`, copy FOLDER here") as caught:
        open_tensors(name)
    assert ("models/x.pt --local" in str(caught.value)) == name.endswith("x.pt")
    assert ("--revision v1" in str(caught.value)) == ("@v1" in name)


def test_of_a_repository_only_the_chosen_files_are_downloaded(offline, tensors, monkeypatch):
    files = ["README.md", "text_encoder/model.safetensors"]
    files += [f"transformer/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    files += ["transformer/diffusion_pytorch_model.safetensors.index.json"]
    asked = {}

    def snapshot_download(repo, **options):
        asked.update(options, repo=repo)
        p.write_diffusers(offline / "made", tensors)
        return str(offline / "made")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    same(original_names(open_tensors("org/pipeline@v2")), tensors)
    stem = "transformer/diffusion_pytorch_model"
    assert asked["allow_patterns"] == [f"{stem}.safetensors.index.json", f"{stem}-*.safetensors"]
    assert (asked["repo"], asked["revision"]) == ("org/pipeline", "v2")


def test_what_exists_on_disk_wins_over_a_hub_id(offline, tensors, monkeypatch):
    other = p.tiny_wan_tensors(p.TINY_T2V, seed=1)
    cached_repo(offline, "org/name", lambda folder: p.write_krea(folder, other))
    same(open_tensors("org/name"), other)
    p.write_krea(Path("org/name"), tensors)
    same(open_tensors("org/name"), tensors)
    same(open_tensors("hf://org/name"), other)


@pytest.mark.parametrize("name", ["/nowhere/x.pt", "runs/x.pt", "./a/b", "hub/missing/x.pt", "x.pt"])
def test_a_missing_path_is_not_looked_for_on_the_hub(offline, name):
    offline.mkdir()
    with pytest.raises(ValueError, match=f"no weights at {name}: there is no such file or folder"):
        open_tensors(name)


# Filling a module


@pytest.mark.parametrize("spec", TINY)
def test_a_denoiser_is_filled_from_each_layout(tmp_path, spec):
    tensors = p.tiny_wan_tensors(spec)
    p.write_causvid(tmp_path / "a", tensors)
    p.write_diffusers(tmp_path / "b", tensors)
    ignored = unused_norms(spec)
    expected = {n: t.reshape(80, -1) if n == "patch_embedding.weight" else t for n, t in tensors.items()}
    for folder in (tmp_path / "a", tmp_path / "b"):
        found = open_denoiser(folder)
        module = module_of({n: s for n, s in found.shapes.items() if n not in ignored})
        filled = fill(module, found, torch.bfloat16, "cpu", ignored).state_dict()
        assert set(filled) == set(expected) - set(ignored)
        assert all(torch.equal(filled[name], expected[name].bfloat16()) for name in filled)
    assert len(ignored) == (4 if spec.actions else 0)


@pytest.mark.parametrize("spec", [*TINY, replace(p.TINY_ACTIONS, actions=replace(p.TINY_ACTIONS.actions, mouse=0))])
def test_the_denoiser_has_a_place_for_every_published_tensor(spec):
    tensors = in_memory(p.tiny_wan_tensors(spec))
    with META:
        module = WanDiT(wan_spec_of(tensors.shapes, head_width=40, text_tokens=12))
    fill(module, linear_patches(tensors), torch.float32, "cpu", unused_norms(spec))
    assert not any(tensor.is_meta for tensor in module.state_dict().values())


def test_a_flat_patch_weight_is_the_kernel(tensors):
    latents = torch.randn(1, 16, 1, 2, 2)
    weight = tensors["patch_embedding.weight"]
    expected = nn.functional.conv3d(latents, weight, stride=(1, 2, 2)).flatten()
    flat = linear_patches(in_memory(tensors))["patch_embedding.weight"]
    torch.testing.assert_close(flat @ latents.flatten(), expected, atol=1e-5, rtol=1e-5)


def test_filling_keeps_whole_numbers_and_stored_dtypes_and_lets_go_of_the_file(tmp_path):
    path = p.write_safetensors(
        tmp_path / "x.safetensors", {"a.weight": torch.ones(3).half(), "a.count": torch.tensor(7)}
    )
    module = module_of({"a.weight": (3,)})
    module.a.register_buffer("count", torch.empty((), dtype=torch.int64, device=META))
    fill(module, open_tensors(path), None, "cpu")
    shutil.copy(p.write_safetensors(tmp_path / "y.safetensors", {"b": torch.zeros(40)}), path)
    assert (module.a.weight.dtype, module.a.count.item(), module.a.weight.tolist()) == (torch.float16, 7, [1.0] * 3)


def unread(shapes: dict[str, tuple]) -> Tensors:
    """Tensors that may be looked at and not read."""

    def read():
        raise AssertionError("read")

    return Tensors({name: Entry(shape, torch.float32, read) for name, shape in shapes.items()}, "x.pt")


def test_all_that_does_not_fit_is_listed_before_a_number_is_read():
    shapes = p.names_and_shapes(p.TINY_ACTIONS)
    ignored = unused_norms(p.TINY_ACTIONS)
    module = module_of({name: shape for name, shape in shapes.items() if name not in ignored})
    assert set(original_names(unread(shapes))) == set(shapes)
    wrong = dict(shapes)
    wrong["blocks.1.ffn.0.wieght"] = wrong.pop("blocks.1.ffn.0.weight")
    wrong["head.modulation"] = (1, 2, 79)
    norm = "blocks.0.action_model.key_attn_q_norm.weight"
    wrong[norm] = (63,)
    del wrong["blocks.0.action_model.img_attn_k_norm.weight"]
    with pytest.raises(ValueError, match=r"x\.pt does not fit the model") as caught:
        fill(module, unread(wrong), torch.float32, "cpu", ignored)
    text = str(caught.value)
    assert "unexpected blocks.1.ffn.0.wieght [96, 80] (nearest: blocks.1.ffn.0.weight)" in text
    assert "head.modulation is [1, 2, 79], expected [1, 2, 80]" in text
    assert f"{norm} is [63], expected [64]" in text
    assert "missing blocks.0.action_model.img_attn_k_norm.weight [64]" in text
    assert text.count("\n") == 5


def test_one_tensor_is_in_flight_and_ignored_ones_are_not_read(tensors):
    alive, most, reads = set(), 0, []

    def counting(name, tensor):
        def read():
            nonlocal most
            made = tensor.clone()
            alive.add(name)
            weakref.finalize(made.untyped_storage(), alive.discard, name)
            most = max(most, len(alive))
            reads.append(name)
            return made

        return Entry(tuple(tensor.shape), tensor.dtype, read)

    source = Tensors({name: counting(name, tensor) for name, tensor in tensors.items()}, "x.pt")
    ignored = {"head.modulation": (1, 2, 80)}
    module = module_of({n: s for n, s in source.shapes.items() if n not in ignored})
    fill(module, source, torch.float32, "cpu", ignored)
    assert sorted(reads) == sorted(set(tensors) - set(ignored))
    assert most == 1


def test_a_module_is_left_alone_if_reading_fails(tensors):
    def fail():
        raise OSError("the disk is gone")

    source = in_memory(tensors)
    source.entries["head.head.bias"] = replace(source.entries["head.head.bias"], read=fail)
    module = module_of(source.shapes)
    with pytest.raises(OSError, match="the disk is gone"):
        fill(module, source, torch.float32, "cpu")
    assert all(parameter.is_meta for parameter in module.parameters())


# Adapters


def lora_file(folder: Path, lora: dict, **changes) -> Path:
    return p.write_torch(folder / "lora.pt", p.peft_names(lora) | changes)


@pytest.mark.parametrize("adapter", ["", ".default"])
def test_a_merged_adapter_is_the_sum_in_fp32(tmp_path, tensors, adapter):
    lora = p.tiny_lora(tensors)
    base, path = p.write_longlive(tmp_path, {n: t.bfloat16() for n, t in tensors.items()}, lora, adapter)
    for alpha, scale in ((None, 1.0), (8, 2.0)):
        found = merged(open_denoiser(base), read_lora(path, alpha))
        for name in tensors:
            module = name.removesuffix(".weight")
            stored = tensors[name].bfloat16()
            if f"{module}.lora_A" in lora:
                change = scale * lora[f"{module}.lora_B"] @ lora[f"{module}.lora_A"]
                torch.testing.assert_close(found[name].float(), stored.float() + change, atol=1e-6, rtol=2**-8)
                assert not torch.equal(found[name], stored)
            else:
                assert torch.equal(found[name].flatten(), stored.flatten())
            assert found[name].dtype == found.dtypes[name] == torch.bfloat16


def test_an_adapter_beside_a_linear_computes_what_the_merged_one_does(tmp_path, tensors):
    path = lora_file(tmp_path, p.tiny_lora(tensors))
    weights, lora = linear_patches(in_memory(tensors)), read_lora(path, alpha=6)
    plain, sums = (
        fill(module_of(weights.shapes), source, torch.float32, "cpu") for source in (weights, merged(weights, lora))
    )
    beside = apply_lora(plain, lora)
    x = torch.randn(3, 5, 80)
    for name in lora.adapters:
        inputs = torch.randn(3, 5, 96) if name.endswith("ffn.2") else x
        expected = sums.get_submodule(name)(inputs)
        torch.testing.assert_close(beside.get_submodule(name)(inputs), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(plain.get_submodule(name)(inputs), expected, atol=1e-2)
        assert beside.get_submodule(name).linear.weight is plain.get_submodule(name).weight
    assert len(lora.adapters) == 20
    assert beside.text_embedding is not plain.text_embedding
    assert type(beside.text_embedding.get_submodule("0")) is nn.Linear


def test_adapters_take_the_dtype_of_their_linear(tmp_path, tensors):
    lora = read_lora(lora_file(tmp_path, p.tiny_lora(tensors)))
    module = fill(module_of(in_memory(tensors).shapes), in_memory(tensors), torch.bfloat16, "cpu")
    linear = apply_lora(module, lora).get_submodule("blocks.1.ffn.0")
    assert {parameter.dtype for parameter in linear.parameters()} == {torch.bfloat16}
    assert linear(torch.ones(1, 80, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_recorded_adapter_is_read(tmp_path):
    recorded = load_file(ORACLES / "longlive_rollout_lora.safetensors")
    save_file(
        {k.removeprefix("lora."): t for k, t in recorded.items() if k.startswith("lora.")}, tmp_path / "x.safetensors"
    )
    weights = in_memory({k.removeprefix("weights."): t for k, t in recorded.items() if k.startswith("weights.")})
    lora = read_lora(tmp_path / "x.safetensors", alpha=4)
    found = merged(weights.renamed(plain_name), lora)
    assert len(lora.adapters) == 20
    assert all(adapter.scale == 1.0 for adapter in lora.adapters.values())
    assert set(found) == set(p.names_and_shapes(p.TINY_T2V))


def test_adapters_that_do_not_fit_are_refused(tmp_path, tensors):
    lora = p.tiny_lora(tensors)
    weights = in_memory(tensors)
    module = module_of(weights.shapes)
    bad = {n.replace("blocks.1.ffn.0", "blocks.1.fnn.0"): t for n, t in lora.items()}
    bad["blocks.0.ffn.0.lora_A"] = torch.ones(4, 81)
    found = read_lora(lora_file(tmp_path, bad))
    for use in (lambda: merged(weights, found), lambda: apply_lora(module, found)):
        with pytest.raises(ValueError, match="does not fit the model") as caught:
            use()
        assert "no linear blocks.1.fnn.0 (nearest: blocks.1.ffn.0)" in str(caught.value)
        assert "adapter of blocks.0.ffn.0 is for [96, 81], its weight is [96, 80]" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"blocks.0.ffn.0.lora_A": torch.ones(5, 80)}, r"lora_A \[5, 80\] and lora_B \[96, 4\].*of one rank"),
        ({"blocks.0.ffn.0.lora_B": None}, r"blocks\.0\.ffn\.0 has no lora_B"),
        ({"blocks.0.ffn.0.lora_A.other": torch.ones(4, 80)}, r"two adapters of blocks\.0\.ffn\.0"),
        ({"blocks.0.ffn.0.magnitude": torch.ones(4)}, r"magnitude\.weight: expected <module>\.lora_A"),
    ],
)
def test_broken_adapters_are_refused(tmp_path, tensors, change, says):
    lora = {name: tensor for name, tensor in {**p.tiny_lora(tensors), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=says):
        read_lora(lora_file(tmp_path, lora))


def test_a_base_model_is_not_taken_for_an_adapter(tmp_path, tensors):
    base, path = p.write_longlive(tmp_path, tensors, p.tiny_lora(tensors))
    assert len(read_lora(tmp_path).adapters) == len(read_lora(path).adapters) == 20
    with pytest.raises(ValueError, match="choose with prefer="):
        read_lora(base)
