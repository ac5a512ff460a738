"""One HTML page in which a trained model can be explored."""
