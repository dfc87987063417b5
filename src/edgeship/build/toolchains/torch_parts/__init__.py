"""What ``torch_worker.py`` is made of. Imported only in its process, never by Edgeship: it imports PyTorch."""
