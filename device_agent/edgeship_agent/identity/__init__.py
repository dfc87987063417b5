"""Who this device is: its key and certificate, how it came by them, and TLS made of them."""
