"""What a policy is worth: returns in the simulator, estimates from logged episodes alone."""
