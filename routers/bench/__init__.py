"""What the routers reach, on logged outcomes or in simulations: `python -m routers.bench.NAME` prints each."""
