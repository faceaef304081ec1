"""What the endpoints need, a room an idea; README.md draws the map."""

__version__ = "1.0.0"
