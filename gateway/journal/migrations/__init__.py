"""Alembic's scripts. They only expand: a release runs on the tables of the one before and the one after."""
