"""From samples to batches: preprocessing, augmentation, worker processes, sampling by class."""
