"""What control processes and replicas tell each other, and who does what needs doing once."""
