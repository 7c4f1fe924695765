"""Transfer learning for plant, weed and produce photos: what a score in the laboratory is worth in the field."""
