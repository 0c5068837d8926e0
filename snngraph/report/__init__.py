"""What snngraph tells people: reports as text, JSON and HTML."""
