"""The offline default: generated text and a small decoder pretrained on such text."""
