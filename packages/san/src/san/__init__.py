"""SAN, Side Adapter Network (Xu et al., CVPR 2023)."""
