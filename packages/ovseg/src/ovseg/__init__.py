"""OVSeg: open-vocabulary segmentation with mask-adapted CLIP (Liang et al., CVPR 2023)."""
