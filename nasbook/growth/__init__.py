"""Growth: functions that take a network and return a larger one (Chapter 4)."""
