"""What every trainer shares: arguments, data in a fixed order, checkpoints, averages, schedules."""
