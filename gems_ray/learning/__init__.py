"""The training loop: engines that run updates, diagnostics, reports."""
