"""Nothing outside the repository is needed: fixtures that several folders use."""
