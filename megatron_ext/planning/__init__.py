"""What a layout needs, computed without running it."""
