"""Artifacts on disk: keys, manifests, checksums, locks, resuming. Everything stands on it."""
