"""Whether learning is alive: exploration, labels, drift, calibration, concentration."""
