"""The processes of `headgate serve`: the supervisor, workers and the control process."""
