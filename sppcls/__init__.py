"""Multi-scale image classification with spatial pyramid pooling."""
