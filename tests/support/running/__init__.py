"""Commands, servers and training runs, and how tests wait for them."""
