"""One file a framework: `read(network)` and `write(network, weights)` between a network and canonical weights.

Canonical weights are a dictionary of float32 arrays under the usual PyTorch names and layouts: `conv.weight`
(O, I, H, W), `fc.weight` (O, I), batch norm as `weight`, `bias`, `running_mean`, `running_var`; no step counters.
"""
