"""What is played: the Policy interface, and every policy that is not learned here."""
