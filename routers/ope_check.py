"""Shows the off-policy estimators against a known truth: `python -m routers.ope_check`."""
