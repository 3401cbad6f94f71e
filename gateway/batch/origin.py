"""Who made a job: the API by which a client did is the only one by which it is seen again."""

COMMAND = "command"
"""`headgate batch run`, which runs it too."""
OPENAI = "api"
"""/v1/batches"""
ANTHROPIC = "messages"
"""/v1/messages/batches"""
SERVED = (OPENAI, ANTHROPIC)
"""Workers run these."""
