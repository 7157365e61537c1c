"""The adapter engine: plan, attach, detach, switch, dial, save, load, merge and count.

Public names stay in their modules (``crossadapt.adapters.attach.attach`` and so on) and the common
ones are offered by `crossadapt` itself, so that listing methods does not import torch.
"""
