"""A published checkpoint, from its files to a clip: loaded, prompted, prompted anew, recorded.

With --checkpoint it opens yours, such as Self-Forcing's checkpoints/self_forcing_dmd.pt with Wan2.1-T2V-1.3B beside it.
Without, it writes a tiny one first, of random weights in the very same files. Random weights make pictures of noise:
what they show is that everything from the files to the clip works.
"""

import tempfile
from pathlib import Path

import numpy as np
import tokenizers
import torch
import tyro

import engine
from engine.codecs.wan_vae import WanVae
from engine.conditioners.layouts import TextSizes
from engine.models.wan import WanDiT
from engine.published import WanSpec, WanVaeSpec
from inferix_env.record import Recorder, write_sheet

PROMPTS = ("a path through a forest at dawn", "the same path in heavy snow")
SIZES = WanSpec(width=256, ffn=512, heads=2, layers=2, text_width=64)
TEXT = TextSizes(vocabulary=29, width=64, inner=64, heads=4, ffn=128, layers=2, buckets=32)
VAE = WanVaeSpec(width=8, multiples=(1, 2, 2, 2), depth=1)


def write_tiny(folder: Path) -> Path:
    """Write the files of Self-Forcing and Wan2.1, tiny and random, where their repositories have them."""
    torch.manual_seed(0)
    weights = {f"model.{name}": x for name, x in WanDiT(SIZES).state_dict().items()}
    name = "model.patch_embedding.weight"  # published as a convolution
    weights[name] = weights[name].view(SIZES.width, SIZES.in_channels, 1, SIZES.patch, SIZES.patch)
    base, path = folder / "wan_models" / "Wan2.1-T2V-1.3B", folder / "checkpoints" / "self_forcing_dmd.pt"
    tokenizer = base / "google" / "umt5-xxl" / "tokenizer.json"
    for parent in (path.parent, tokenizer.parent):
        parent.mkdir(parents=True)
    torch.save({"generator": weights, "generator_ema": weights}, path)
    torch.save(WanVae(VAE).state_dict(), base / "Wan2.1_VAE.pth")
    text = {name: torch.randn(shape) * 0.3 for name, shape in TEXT.shapes().items()}
    torch.save(text, base / "models_t5_umt5-xxl-enc-bf16.pth")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), *((letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz")]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.save(str(tokenizer))
    return path


def roll_out(sim: engine.Engine, prompts: tuple[str, ...], blocks: int, seed: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] of one world, its prompts in turn, each for its share of the blocks."""
    contexts = [engine.prompt_context(sim, prompt) for prompt in prompts]
    world = sim.open(engine.scene(sim, prompts[0]), seed)
    made = []
    for i in range(blocks):
        actions = np.zeros((sim.spec.frames_at(world.table.length), 0), np.float32)
        prompt = contexts[i * len(contexts) // blocks]
        [block] = sim.step([world], [engine.Condition.of(actions, prompt=prompt)])
        made.append(block.frames)
    sim.close(world)
    return np.concatenate(made)


def main(
    checkpoint: Path | None = None,
    preset: str = "self-forcing",
    prompts: tuple[str, ...] = PROMPTS,
    blocks: int = 3,
    height: int = 96,
    width: int = 160,
    seed: int = 0,
    device: str = "cpu",
    out: Path = Path("out/published_checkpoint.mp4"),
) -> np.ndarray:
    """Write a clip, and a sheet of its frames beside it.

    Args:
        checkpoint: a file or folder; by default a tiny one of random weights.
        preset: how it is run; see engine.PRESETS.
        prompts: what the clip is of, one after another.
        blocks: how many blocks, 12 frames each but the first.
        height, width: of the frames, multiples of 16; published models were trained for 480 x 832.
        out: the clip.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint or write_tiny(Path(folder))
        model = engine.load(path, device, preset=preset, size=(height, width))
        print(f"{path.name}: preset {preset}, {height}x{width}, {str(model.dtype).removeprefix('torch.')} on {device}")
        sim = engine.Engine(model)
        frames = roll_out(sim, prompts, blocks, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Recorder(out, (height, width), sim.spec.fps, scale=1) as recorder:
        recorder.add(frames)
    shown = frames[np.linspace(0, len(frames) - 1, 12).round().astype(int)]
    sheet = write_sheet(out.with_suffix(".png"), shown, columns=4, scale=1)
    print(f"{out}, {sheet}: {len(frames)} frames in {blocks} blocks, {len(prompts)} prompts")
    if checkpoint is None:
        print("the weights are random, so the pictures are noise: give --checkpoint for real ones")
    return frames


if __name__ == "__main__":
    tyro.cli(main)
