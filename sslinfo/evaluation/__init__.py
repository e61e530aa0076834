"""What is measured on features of a split: probes, the division of images for the bound."""
