"""`python -m local_models`: the server, as a supervisor starts it."""

from local_models.serve import main

main()
