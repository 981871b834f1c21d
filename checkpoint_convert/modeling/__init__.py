"""Modelling files that travel with an export that no class inside transformers can hold."""
