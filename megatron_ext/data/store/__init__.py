"""Datasets on disk: `.bin/.idx`, loss mask and manifest; written, read, verified, merged, shown."""
