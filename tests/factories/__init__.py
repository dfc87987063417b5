"""Models of Python code, as a user has them: imported only where PyTorch is."""
