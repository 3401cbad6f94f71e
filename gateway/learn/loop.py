"""The closed loop: data set, retrain, gate, shadow, canary, promote or roll back."""
