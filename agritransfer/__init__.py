"""Transfer learning for plant, weed and produce photos: the steps that the training scripts put in order."""
