"""What the Responses API stores: responses, conversations, and background responses with their event streams."""
