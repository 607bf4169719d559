"""The parts of the batched Redis transport: claims, leases and acknowledgements of messages."""
