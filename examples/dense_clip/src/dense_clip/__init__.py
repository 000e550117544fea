"""Training-free dense CLIP: MaskCLIP, SCLIP and NACLIP as a plugin of openvocab."""
