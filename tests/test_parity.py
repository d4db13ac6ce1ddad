"""Recordings of published code, replayed by the command that users have; altered ones, which must miss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.parity.__main__ import KINDS, ParityConfig, main, replay
from benchmarks.parity.case import Case, Row, alike, ulp

FOLDER = Path(__file__).parent / "parity" / "wan"
FILES = sorted(FOLDER.glob("*.safetensors"))
MAGI = FOLDER.parent / "magi"
# Of MAGI-1's rollouts those that between them have a prefix, no prompt, no guidance, other sizes.
QUICK = ("rollout_base_null_prompt", "rollout_distill_24b_8step", "rollout_v2v_base")
RECORDED = [
    pytest.param(
        path, id=path.stem, marks=pytest.mark.slow if "rollout" in path.stem and path.stem not in QUICK else ()
    )
    for path in sorted(MAGI.glob("*.safetensors"))
]
Tensors = dict[str, Tensor]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_output_is_as_recorded(path):
    case, problem = replay(path, "cpu")
    assert problem == ""
    assert [str(row) for row in case.rows if not row.passed] == []
    assert case.missing() == []
    parts = [row.name for row in case.rows if row.note]  # compared in part: what no later block is shown
    assert all(name.startswith("recache") or name.endswith("keyboard_embed") for name in parts)
    # Not by chance: exact arithmetic in another order stays far below the tolerance.
    assert max(row.share for row in case.rows if not row.name.startswith("bf16")) < 0.1


@pytest.mark.parametrize("path", RECORDED)
def test_every_output_of_magi_is_as_recorded(path):
    case, problem = replay(path, "cpu")
    assert problem == ""
    assert [str(row) for row in case.rows if not row.passed] == []
    assert case.missing() == []
    distilled = case.info.get("config", {}).get("engine_config", {}).get("distill")
    if not distilled and case.info["kind"] != "magi_schedule":
        # Not by chance. Step sizes make large angles, where the last bit of exp tells: processors differ in it.
        assert max(row.share for row in case.rows) < (0.5 if case.info["dtype"].startswith("bf") else 0.1)


def test_there_is_a_recording_of_every_kind():
    assert {Case.read(path).info["kind"] for path in [*FILES, *MAGI.glob("*.safetensors")]} == KINDS.keys()


def altered(
    folder: Path, name: str, change: Callable[[Tensors, dict[str, Any]], None] = lambda tensors, info: None
) -> Path:
    """A recording with its tensors and metadata changed."""
    source = FOLDER / f"{name}.safetensors"
    case = Case.read(source if source.exists() else MAGI / f"{name}.safetensors")
    tensors = {f"{group}.{key}": x for group, known in case.groups.items() for key, x in known.items()}
    change(tensors, case.info)
    path = folder / f"{name}.safetensors"
    key = "case" if source.exists() else "json"
    save_file({name: x.contiguous().clone() for name, x in tensors.items()}, path, {key: json.dumps(case.info)})
    return path


def run(capsys, *files: Path, **options: Any) -> tuple[int, str]:
    """The command's exit code and output."""
    code = main(ParityConfig(files, **options))
    out, err = capsys.readouterr()
    return code, out + err


def moved(name: str, by: float = 0.05, at: int | None = None):
    """A change of one element of a tensor, by default of the one in the middle."""

    def change(tensors: Tensors, info: dict[str, Any]) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[tensors[name].numel() // 2 if at is None else at] += by

    return change


# ---- what must miss


@pytest.mark.parametrize(
    ("name", "tensor", "misses"),
    [
        ("sf_rollout_hd128", "weights.model.blocks.0.self_attn.o.bias", ("latents", "clean_flow.block0", "x0.block2")),
        ("sf_rollout_hd128", "in.step_noise.block1", ("latents", "x0.block1", "clean_flow.block2")),
        ("longlive_rollout_lora", "lora.base_model.model.blocks.1.ffn.0.lora_B.weight", ("latents", "recache0.flow")),
        ("mg2_forward", "weights.model.blocks.0.action_model.proj_mouse.weight", ("dbg.call2.block0.proj_mouse",)),
        ("dit_forward_bidirectional", "weights.blocks.1.cross_attn.q.weight", ("flow", "dbg.block1")),
        ("wan_vae_decode_stream", "in.latent_std", ("video", "video.block0")),
        ("wan_vae_encode", "in.clip", ("clip",)),
        ("text_encoder_umt5", "weights.blocks.1.attn.o.weight", ("prompt_embeds",)),
        ("clip_vision", "in.image", ("pixel_values", "clip_fea")),
        ("scheduler_tables", "in.step.shift8.flow", ("step.shift8.x0", "step.shift8.renoised")),
        ("primitives", "in.norm.rms_w", ("norm.rms", "norm.rms_bf16")),
        ("rollout_v2v_base", "in.prefix_latents", ("chunk.0", "latents")),
        ("rollout_base_null_prompt", "in.noise", ("chunk.0", "state_final", "trace.0.x_before")),
        ("dit_forward", "weights.rope.bands", ("text.rope", "alone.velocity")),
        ("dit_forward_cached", "in.call1.t", ("call1.velocity", "call1.kv_cache.layer1")),
        ("fp8_linear", "weights.T.weight_scale", ("T.y",)),
        ("schedule", "in.sinusoid_t", ("sinusoid.fp32",)),
        ("vae_encode", "weights.encoder.pos_embed", ("image.latents", "video.latents")),
        ("vae_decode", "in.chunk6.latents", ("chunk6.frames",)),
    ],
)
def test_one_number_off_is_a_miss_that_names_the_outputs(tmp_path, capsys, name, tensor, misses):
    code, out = run(capsys, altered(tmp_path, name, moved(tensor)), quiet=True)
    assert code == 1
    assert f"{name}.safetensors: MISS: " in out
    assert "0 of 1 files pass" in out
    for output in misses:
        assert any(line.split()[0] == output and " MISS" in line for line in out.splitlines() if line)


def test_an_output_that_nothing_is_compared_with_is_a_miss(tmp_path, capsys):
    path = altered(tmp_path, "primitives", lambda tensors, info: tensors.update({"out.norm.group": torch.ones(3)}))
    code, out = run(capsys, path)
    assert code == 1
    assert "norm.group" in out
    assert "nothing was computed to compare with" in out


def ended_early(tensors: Tensors, info: dict[str, Any]) -> None:
    """A stage whose last chunk is another."""
    info["sequences"][0]["chunk_end"][1] += 1


def changed(section: str, **settings: Any):
    """A change of a config that a recording holds, or of what stands beside it."""

    def change(tensors: Tensors, info: dict[str, Any]) -> None:
        (info["config"][section] if section else info).update(settings)

    return change


@pytest.mark.parametrize(
    ("name", "change", "misses"),
    [
        ("rollout_v2v_base", changed("runtime_config", noise2clean_kvrange=[4, 4, 3, 2]), ("chunk.4", "json.schedule")),
        ("rollout_v2v_base", changed("runtime_config", clean_t=0.99), ("chunk.2", "json.schedule", "trace.0.velocity")),
        ("rollout_v2v_base", changed("runtime_config", text_scales=[7, 7, 7, 0, 0]), ("chunk.0", "trace.0.velocity")),
        ("rollout_v2v_base", changed("", env=["PAD_HQ"]), ("chunk.0", "latents")),
        ("rollout_distill_24b_8step", changed("", prev_chunks_scale=0.5), ("chunk.1", "latents")),
        ("rollout_distill_24b_8step", changed("", chunks=[]), ("json.chunks",)),
        ("rollout_v2v_base", moved("in.special.other_tokens", at=24), ("chunk.0", "trace.0.velocity")),
        ("rollout_v2v_base", moved("weights.y_embedder.null_caption_embedding", at=0), ("chunk.0", "trace.0.velocity")),
        ("text_assembly", moved("in.special.other_tokens", at=8), ("shipped.y_head", "all_negative.y_sum")),
        ("schedule", ended_early, ("json.sequences",)),
    ],
)
def test_another_setting_of_magi_is_a_miss(tmp_path, name, change, misses):
    case, problem = replay(altered(tmp_path, name, change), "cpu")
    assert problem == ""
    missed = {row.name for row in case.rows if not row.passed}
    assert missed >= set(misses), missed


def test_a_table_that_nothing_is_compared_with_is_a_miss():
    case = Case.read(MAGI / "rollout_distill.safetensors")
    assert {"json.schedule", "json.chunks", "latents"} <= set(case.missing())


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([1, True, "x"], [1, True, "x"], True),
        ({"t": [0.1]}, {"t": [0.1 + 1e-8]}, True),
        ({"t": [0.1]}, {"t": [0.1 + 1e-5]}, False),
        ([[0, 1]], [[0, 2]], False),
        ([1], [1, 2], False),
        ({"a": 1}, {"b": 1}, False),
        (0.5, "0.5", False),
    ],
)
def test_tables_are_equal_to_rounding(a, b, same):
    assert alike(a, b) is same


def test_an_unknown_switch_is_said(tmp_path, capsys):
    code, out = run(capsys, altered(tmp_path, "rollout_v2v_base", changed("", env=["PAD_NOISE"])))
    assert code == 1
    assert "its switch 'PAD_NOISE' is unknown; known are PAD_STATIC" in out.splitlines()[0]


def test_a_value_that_is_no_number_is_a_miss(tmp_path, capsys):
    code, out = run(capsys, altered(tmp_path, "primitives", moved("in.norm.x", by=float("nan"))), quiet=True)
    assert code == 1
    assert "norm.rms " in out


# ---- what must not: the same recording told otherwise


def two_worlds(tensors: Tensors, info: dict[str, Any]) -> None:
    """Every world twice."""
    info["layout"]["batch"] *= 2
    for name, x in tensors.items():
        group, _, key = name.partition(".")
        whole = key.startswith(("timesteps", "switch", "kv.global", "kv.local")) or key.endswith("at_frame")
        if group in ("in", "out", "out_bf16") and not whole:
            tensors[name] = torch.cat([x, x], dim=1 if key.startswith(("x0", "step_noise")) else 0)


def other_axes(tensors: Tensors, info: dict[str, Any]) -> None:
    """Latents with frames and channels the other way round."""
    info["latent_layout"] = "BFCHW" if info["latent_layout"] == "BCFHW" else "BCFHW"
    for name, x in tensors.items():
        if not name.startswith(("weights", "lora")) and ".kv" not in name and x.ndim >= 5:
            tensors[name] = x.transpose(-4, -3)


def first_block_given(tensors: Tensors, info: dict[str, Any]) -> None:
    """A rollout that begins from its own first block: what follows is the same."""
    size = info["cache"]["block_sizes"].pop(0)
    info["layout"]["initial_frames"] = size
    tensors["in.initial_latent"] = tensors["out.latents"][:, :size]
    tensors["out.prefix_flow.0"] = tensors["out.clean_flow.block0"]
    if "sigmas" not in info["sampler"]:  # CausVid's noise covers the given frames too
        tensors["in.noise"] = tensors["in.noise"][:, size:]
    blocks = sorted(name for name in tensors if ".block" in name and not name.startswith("weights"))
    for name in blocks:
        key, number = name.rsplit("block", 1)
        x = tensors.pop(name)
        if int(number):
            tensors[f"{key}block{int(number) - 1}"] = x


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("longlive_rollout_lora", two_worlds),
        ("sf_i2v_first_frame", two_worlds),
        ("sf_i2v_first_frame", other_axes),
        ("mg2_forward", other_axes),
        ("dit_forward_bidirectional_i2v", other_axes),
        ("wan_vae_decode_stream", other_axes),
        ("sf_rollout_window", first_block_given),
        ("causvid_rollout", first_block_given),
    ],
)
def test_the_same_recording_told_otherwise_passes(tmp_path, name, change):
    case, problem = replay(altered(tmp_path, name, change), "cpu")
    assert problem == ""
    assert [str(row) for row in case.rows if not row.passed] == []
    assert case.missing() == []


# ---- files that cannot be replayed


def test_other_files_go_on_where_one_cannot(tmp_path, capsys):
    unknown = altered(tmp_path, "scheduler_tables", lambda tensors, info: info.update(kind="teleport"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((FOLDER / "sf_rollout.safetensors").read_bytes()[:5000])
    code, out = run(capsys, unknown, cut, tmp_path / "none.safetensors", FOLDER / "primitives.safetensors", quiet=True)
    lines = out.splitlines()
    assert code == 1
    assert lines[0].startswith(f"{unknown}: MISS: its kind 'teleport' is unknown; known are primitives, scheduler, ")
    assert lines[1].startswith(f"{cut}: MISS: cannot be read, it is cut short or no recorded case: ")
    assert lines[2].endswith("none.safetensors: MISS: there is no such file")
    assert "primitives.safetensors: ok: 20 outputs" in lines[3]
    assert lines[-1].startswith("1 of 4 files pass; 20 outputs compared in ")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tolerance": {"abs": 1e-5}}, "its tolerance is {'abs': 1e-05}: expected atol and rtol"),
        ({"tolerance": None}, "its tolerance is None: expected atol and rtol"),
        ({"kind": "vae_encode"}, "Wan2.1_VAE.pth has none of"),
        ({"model": None, "kind": "text_encoder"}, "could not be replayed to its end (TypeError: "),
        ({"grid": None}, "could not be replayed to its end (TypeError: "),
    ],
)
def test_metadata_that_do_not_fit_are_said_in_one_line(tmp_path, capsys, change, match):
    code, out = run(capsys, altered(tmp_path, "primitives", lambda tensors, info: info.update(change)), quiet=True)
    assert code == 1
    assert match in out.splitlines()[0]


def test_a_recording_that_lacks_a_part_says_which(tmp_path, capsys):
    def without_noise(tensors: Tensors, info: dict[str, Any]) -> None:
        del tensors["in.noise"]

    code, out = run(capsys, altered(tmp_path, "sf_rollout_hd128", without_noise))
    assert code == 1
    assert "sf_rollout_hd128.safetensors: MISS: the recording lacks 'noise'" in out


@pytest.mark.parametrize(
    ("key", "value"), [("eps", 1e-5), ("rope_theta", 500), ("patch_size", [1, 1, 1]), ("clip_tokens", 50)]
)
def test_a_model_that_the_loader_cannot_make_is_said_plainly(tmp_path, capsys, key, value):
    def change(tensors: Tensors, info: dict[str, Any]) -> None:
        info["model"][key] = value

    code, out = run(capsys, altered(tmp_path, "mg2_forward", change))
    assert code == 1
    assert f"its model has {key} {value}: no weight tells that" in out.splitlines()[0]


def test_a_file_without_metadata_is_none_of_the_format(tmp_path, capsys):
    save_file({"out.x": torch.ones(1)}, tmp_path / "plain.safetensors")
    code, out = run(capsys, tmp_path)  # a folder
    assert code == 1
    assert "plain.safetensors: MISS: has no 'case' with a 'kind' in its metadata" in out


@pytest.mark.parametrize(("files", "match"), [(("empty",), "no *.safetensors in this folder"), ((), "no files: give")])
def test_nothing_to_replay_is_an_error(tmp_path, capsys, files, match):
    (tmp_path / "empty").mkdir()
    code, out = run(capsys, *(tmp_path / name for name in files))
    assert code == 2
    assert match in out


def test_an_unknown_device_is_refused_once(capsys):
    code, out = run(capsys, FOLDER, device="abacus")
    assert code == 2
    assert out.count("abacus") == 1


# ---- how close is close enough


def test_bfloat16_outputs_may_be_one_ulp_off():
    x = torch.tensor([1.0, -1.5, 2.0, 3.0e-5, 0.0])
    after = (x.bfloat16().view(torch.int16) + 1).view(torch.bfloat16)
    assert torch.equal(ulp(x.bfloat16())[:4], (after.double() - x.bfloat16().double()).abs()[:4])
    info = {"tolerance": {"atol": 0.0, "rtol": 0.0}}
    case = Case(Path("x"), info, {"out": {"y": x[:4].bfloat16()}})
    case.compare("y", after[:4])
    case.compare("y", (after[:4].view(torch.int16) + 1).view(torch.bfloat16))
    assert [row.share for row in case.rows] == [1.0, 2.0]


def test_a_tolerance_of_zero_passes_what_is_equal():
    case = Case(
        Path("x"), {"tolerance": {"atol": 0, "rtol": 0}}, {"out": {"n": torch.tensor([3]), "z": torch.zeros(0)}}
    )
    for name, got in (("n", torch.tensor([3])), ("z", torch.zeros(0)), ("n", torch.tensor([4]))):
        case.compare(name, got)
    assert [row.passed for row in case.rows] == [True, True, False]
    case.compare("n", torch.tensor([3, 3]))
    assert case.rows[-1].note == "[2] for [1]"


def test_rows_say_what_misses():
    assert str(Row("flow", 1e-6, 1e-7, 0.5)).endswith("max abs     1e-06  rel rms     1e-07    50.0%")
    assert str(Row("flow", 1.0, 1.0, 2.0, "a part")).endswith("200.0%  MISS  (a part)")
