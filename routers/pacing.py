"""A budget that refills, spent evenly: the price of a dollar rises while spending runs ahead
(primal-dual).
"""
