"""Devices run Programs."""
