"""The narrow waist: what a model is (a Program), independent of files and of devices."""
