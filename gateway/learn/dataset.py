"""The journal as logged rounds and training data: feedback, automatic checks, propensities."""
