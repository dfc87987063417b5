"""Every trained model of the test data, built for every shipped target: what is built, and what is recorded."""
