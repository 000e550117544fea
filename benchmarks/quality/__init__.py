"""Quality: methods evaluated on data sets, diagnosed and compared."""
