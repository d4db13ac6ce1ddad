"""MAGI-1 as an environment, on a CPU, in seconds: its published files in small, a prompt, and another midway.

With --world it opens yours, such as ckpt/magi/4.5B_distill with ckpt as --base. Without, it writes a tiny one first, of
random weights in the very same files. Random weights make pictures of noise: what they show is that everything from the
files to the frames works, and how many seconds later a new prompt shows. A step is a second of video; four of them are
being denoised at once, so what a prompt says is seen when the block that entered with it is finished.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sentencepiece
import torch
import transformers
import tyro
from safetensors.torch import save_file

import inferix_env  # noqa: F401  registers the ids
from engine.codecs.magi_vae import MagiVae
from engine.models.magi import MagiDiT
from engine.published import MagiSpec, MagiVaeSpec
from inferix_env.record import write_sheet

PROMPTS = ("a fox runs through snow", "a ship on a stormy sea")
SIZES = MagiSpec(
    width=96, ffn=128, layers=2, heads=4, kv_heads=2, head_width=24, condition_width=24, text_width=24, distill=True
)
VAE = MagiVaeSpec(width=512, heads=4, layers=1, hidden=128, grid=(3, 4, 4))
SHOWN = 6  # frames of a second on the sheet


def config_of(sizes: MagiSpec, steps: int) -> dict[str, dict[str, Any]]:
    """The config json that lies with such weights: sizes, and how they are rolled out."""
    model = {
        "model_name": "videodit_ardf",
        "num_layers": sizes.layers,
        "hidden_size": sizes.width,
        "ffn_hidden_size": sizes.ffn,
        "num_attention_heads": sizes.heads,
        "num_query_groups": sizes.kv_heads,
        "kv_channels": sizes.head_width,
        "layernorm_epsilon": sizes.eps,
        "apply_layernorm_1p": True,
        "x_rescale_factor": sizes.rescale,
        "half_channel_vae": sizes.doubled,
        "params_dtype": "torch.bfloat16",
        "patch_size": sizes.patch,
        "t_patch_size": 1,
        "in_channels": sizes.in_channels,
        "out_channels": sizes.out_channels,
        "cond_hidden_ratio": sizes.condition_width / sizes.width,
        "caption_channels": sizes.text_width,
        "caption_max_length": sizes.text_tokens,
        "xattn_cond_hidden_ratio": 1.0,
        "cond_gating_ratio": 1.0,
        "gated_linear_unit": sizes.gated,
    }
    runtime = {
        "cfg_number": 1,
        "cfg_t_range": [0.0, 0.0217, 0.1, 0.3, 0.999],
        "prev_chunk_scales": [1.5, 1.5, 1.5, 1.0, 1.0],
        "text_scales": [7.5, 7.5, 7.5, 0.0, 0.0],
        "noise2clean_kvrange": [5, 4, 3, 2],
        "clean_chunk_kvrange": 1,
        "clean_t": 0.9999,
        "num_frames": 96,
        "video_size_h": 64,
        "video_size_w": 96,
        "num_steps": steps,
        "window_size": 4,
        "fps": 24,
        "chunk_width": 6,
        "scale_factor": 0.18215,
        "temporal_downsample_factor": 4,
    }
    engine = {"fp8_quant": False, "distill": True, "distill_nearly_clean_chunk_threshold": 0.3}
    return {
        "model_config": model,
        "runtime_config": runtime,
        "engine_config": {**engine, "shortcut_mode": "8,16,16"},
    }


def write_tiny(base: Path, steps: int = 8) -> Path:
    """Write MAGI-1's files, tiny and random, where its repositories have them; returns the denoiser's folder."""
    torch.manual_seed(0)
    variant = base / "magi" / "tiny_distill"
    weights = {name: x.contiguous() for name, x in MagiDiT(SIZES).state_dict().items()}
    name = "x_embedder.weight"  # published as a convolution
    weights[name] = weights[name].view(SIZES.width, SIZES.in_channels, 1, SIZES.patch, SIZES.patch)
    for folder in (variant / "inference_weight.distill", base / "vae", base / "t5" / "t5-v1_1-xxl"):
        folder.mkdir(parents=True)
    save_file(weights, variant / "inference_weight.distill" / "model.safetensors")
    (variant / "config.json").write_text(json.dumps(config_of(SIZES, steps)))
    save_file(MagiVae(VAE).state_dict(), base / "vae" / "diffusion_pytorch_model.safetensors")
    vae = {"num_heads": VAE.heads, "video_size": VAE.grid[1] * VAE.scale, "video_length": 12}
    (base / "vae" / "config.json").write_text(json.dumps({"_class_name": "ViTVAE", "ddconfig": vae}))
    rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
    draw = np.random.default_rng(0)
    np.savez(base / "special_tokens.npz", **{name: draw.normal(size=(n, SIZES.text_width)) for name, n in rows.items()})
    write_t5(base / "t5" / "t5-v1_1-xxl")
    return variant


def write_t5(folder: Path) -> None:
    """A T5 encoder of random weights, and a tokenizer of single letters."""
    letters = folder / "letters.txt"
    letters.write_text("\n".join([*PROMPTS, " ".join("abcdefghijklmnopqrstuvwxyz")]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(letters),
        model_prefix=str(folder / "spiece"),
        model_type="char",
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    sizes = {"d_model": SIZES.text_width, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 3}
    config = transformers.T5Config(vocab_size=128, feed_forward_proj="gated-gelu", **sizes)
    config.save_pretrained(folder)
    weights = transformers.T5EncoderModel(config).state_dict()
    save_file(
        {name: x for name, x in weights.items() if name != "encoder.embed_tokens.weight"}, folder / "model.safetensors"
    )


def play(env: gym.Env, prompts: list[str], seed: int) -> np.ndarray:
    """Frames uint8 [seconds, T, H, W, 3]: the first second, then one for each prompt; "" leaves what there is."""
    first, *rest = prompts
    _, info = env.reset(seed=seed, options={"prompt": first})
    made = [info["frames"]]
    for prompt in rest:
        *_, info = env.step(prompt)
        made.append(info["frames"])
    return np.stack(made)


def main(
    world: Path | None = None,
    base: Path | None = None,
    prompts: tuple[str, str] = PROMPTS,
    seconds: int = 8,
    seed: int = 0,
    device: str = "cpu",
    out: Path = Path("out/magi_world.png"),
) -> np.ndarray:
    """Play a world under two prompts, and write a sheet of its frames, a second in every row.

    Args:
        world: a published folder, its config json in it; by default a tiny one of random weights.
        base: the folder with vae, t5 and special_tokens.npz.
        prompts: what the video begins as, and what it turns to in its third second.
        seconds: how long it is.
        out: the sheet.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, base = (world, base) if world else (write_tiny(Path(folder)), Path(folder))
        env = gym.make("inferix_env/World-v0", world=path, preset="config", base=base, device=device)
        kept = [prompts[0]] + [""] * (seconds - 1)
        changed = [prompts[1] if i == 2 else prompt for i, prompt in enumerate(kept)]
        plain, frames = (play(env, words, seed) for words in (kept, changed))
        env.close()
    for i, (a, b) in enumerate(zip(plain, frames, strict=True)):
        told = f"new prompt {prompts[1]!r}; " if i == 2 else ""
        print(f"second {i + 1}: {told}{'as without it' if np.array_equal(a, b) else 'another picture'}")
    at = np.linspace(0, frames.shape[1] - 1, SHOWN).round().astype(int)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet = write_sheet(out, frames[:, at].reshape(-1, *frames.shape[2:]), columns=SHOWN, scale=1)
    print(f"{sheet}: {frames.shape[0]} seconds of {frames.shape[1]} frames, {frames.shape[3]}x{frames.shape[2]}")
    if world is None:
        print("the weights are random, so the pictures are noise: give --world and --base for real ones")
    return frames


if __name__ == "__main__":
    tyro.cli(main)
