"""A world against the real game it was learned from: `python -m inferix_env.evaluation --help`."""
