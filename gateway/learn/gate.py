"""Whether a candidate version may replace the incumbent: only when its lower bound beats the estimate."""
