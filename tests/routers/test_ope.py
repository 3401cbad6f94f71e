"""Tests of routers/ope.py."""
