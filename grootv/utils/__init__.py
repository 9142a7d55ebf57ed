"""What the command-line tools share. Nothing here is imported by the operator or the networks."""
