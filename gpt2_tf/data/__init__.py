"""Files of text -> token ids -> batches."""
