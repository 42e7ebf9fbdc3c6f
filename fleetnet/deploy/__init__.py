"""From a trained model to a file that predicts."""
