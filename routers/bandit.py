"""Contextual bandits behind the contract of a router: they learn from every answer that is scored.

Statistics are sums, so those of several replicas merge. Probabilities are computed, never guessed.
"""
