"""Off-policy evaluation: what a policy would have been worth, from decisions that another one made.

Each estimator returns one value per logged round, so that mean, interval and paired comparison come for free.
Where the log cannot tell, the answer is a refusal with what it would take, never a number.
"""
