"""Codecs: latents <-> frames, streaming. Each module is one codec; none knows worlds or denoisers."""
