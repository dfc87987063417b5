"""Other quantizers, called directly and with the settings that their own documentation shows."""
