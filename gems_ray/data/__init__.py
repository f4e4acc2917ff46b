"""The dataset format, and batches from shared arrays."""
