"""`headgate demo`."""
