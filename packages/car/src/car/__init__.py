"""CaR, CLIP as RNN (Sun et al., CVPR 2024)."""
