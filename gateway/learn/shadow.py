"""Shadow and canary: a candidate decides beside the incumbent, then for a share of the traffic."""
