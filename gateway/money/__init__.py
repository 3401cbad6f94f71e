"""Money and limits: prices, charges, budgets held and settled, and rate limits."""
