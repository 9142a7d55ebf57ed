"""Pictures of what the network does."""
