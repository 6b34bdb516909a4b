"""What the tests compare with, and what they serve: nothing here comes from the network."""
