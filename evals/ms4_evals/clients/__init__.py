"""Clients: how samples are drawn from a model."""
