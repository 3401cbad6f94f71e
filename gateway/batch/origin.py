"""Where a job comes from. A client sees a job only through the API by which it was made."""

COMMAND = "command"
"""`headgate batch run`, which also runs the job."""
OPENAI = "api"
"""/v1/batches"""
ANTHROPIC = "messages"
"""/v1/messages/batches"""
SERVED = (OPENAI, ANTHROPIC)
"""Origins of the jobs that workers run."""
