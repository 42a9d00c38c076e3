"""Snapshots of sessions: take, fork, rewind and compare them."""
