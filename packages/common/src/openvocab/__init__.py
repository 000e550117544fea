"""Open-vocabulary semantic segmentation: what OVSeg, SAN and CaR share."""

__version__ = "0.1.0"
