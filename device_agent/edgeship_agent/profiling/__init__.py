"""Profile jobs: artifacts measured on this device, in processes of their own, beside the model that serves."""
