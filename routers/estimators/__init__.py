"""Quality and cost estimators, one per file, behind the contract of `routers.estimators.base`."""
