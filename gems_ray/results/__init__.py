"""Tables from run folders; needs neither ray nor torch."""
