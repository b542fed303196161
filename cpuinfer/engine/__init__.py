"""Requests become batches, batches become tokens."""
