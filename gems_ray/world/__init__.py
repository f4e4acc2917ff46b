"""What turns latents into slates and clicks into states: ranker, belief, agents, the bundle."""
