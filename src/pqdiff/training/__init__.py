"""What all trainers share: options, data in a fixed order, the loop over steps, checkpoints, EMA, log, results."""
