"""Policies and loops that use the environments. They see inferix_env, never the engine; run them from a clone."""
