"""From checkpoint to ONNX: convert, compact, encode, and prove that the result computes the same."""
