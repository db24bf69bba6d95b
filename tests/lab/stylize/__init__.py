"""Style transfer: its losses, its network, and its commands."""
