"""What another knob or router version would have cost and been worth, answered from the journal."""
