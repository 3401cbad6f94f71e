"""`headgate cascade tiny`: measurements on the two shipped models."""
