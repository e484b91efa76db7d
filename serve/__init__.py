"""ONNX files as an HTTP and gRPC service that speaks the Open Inference Protocol (V2).

``repository`` finds and loads models, ``batcher`` merges requests, ``rest`` and ``rpc`` are the two faces of the one
``inference``, ``server`` holds them together. Nothing here imports torch, Flower or TenSEAL: a serving machine needs
the extra ``pruneseal[serve]`` alone.

Source: the Open Inference Protocol, https://github.com/kserve/open-inference-protocol, and its binary tensor extension.
"""
