"""An OpenAI-compatible endpoint on the device: applications use the split model as it is."""
