"""What turns prompts and pictures into the embeddings that published models are conditioned on.

text.py: umT5. cached_text.py: its embeddings on disk. image.py: the CLIP image tower, and pictures as tensors.
tensors.py: their weights, read without copies. All run once, before a world is opened, and know nothing of worlds.
"""
