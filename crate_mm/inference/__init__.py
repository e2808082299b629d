"""Prediction, features and models by name, without a Runner."""
