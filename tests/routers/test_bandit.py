"""Tests of routers/bandit.py."""
