"""What runs in the pod: a torch-free parent (`python -m trainer`) over one rank a GPU (`trainer.train`)."""
