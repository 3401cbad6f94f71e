"""`headgate whatif` and `headgate learn`: turn a knob only after seeing its effect; let routers learn."""
