"""Tests of routers/pacing.py."""
