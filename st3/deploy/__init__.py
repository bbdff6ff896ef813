"""From a finished run: load its network, evaluate it, classify pictures with it. Nothing is trained here."""
